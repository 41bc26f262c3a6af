"""CompareView, clicked: stop one, stop all, copy one, copy all; time, speed and cost of each."""

import pytest

from tests.e2e import checks
from tests.e2e.cells import IDLE, by_id, kept_outputs, local_functions, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

TELLING = """
import asyncio
from uia_lab.domain.backends import BackendCapabilities

def teller(pause, words):
    async def tell(inputs, model):
        for number in range(words):
            await asyncio.sleep(pause)
            yield f"{model} says word {number}, "
    return tell

async def dry(inputs):
    raise RuntimeError("out of ink")
    yield ""

async def add():
    manager = await transport.manager()
    for name, function, price in (
        ("swift", teller(0.01, 40), {"input": 0.5, "output": 1.5}),
        ("steady", teller(0.04, 30), None),
        ("endless", teller(0.02, 4000), {"input": 3, "output": 15}),
        ("dry", dry, None),
    ):
        can = BackendCapabilities({"text-generation"}, {name}, supports_streaming=True, price=price)
        manager.register_backend(f"at-{name}", "gpu", name.title(), function, can)
        await manager.probe(f"at-{name}")
lab._thread.ask(add)
"""


def test_side_by_side(notebook, run_all, axe, server):
    cell = "answers = lab.compare('Which word?', models=['swift', 'steady', 'endless', 'dry'], wait=False)"
    page = notebook([local_functions() + TELLING, cell])
    run_all()
    live = by_id(page, "uia-compare")
    live.wait_for(timeout=60_000)
    columns = by_id(page, "uia-compare-column")
    assert columns.count() == 4
    until(lambda: columns.nth(0).get_attribute("data-state") == "done")
    until(lambda: columns.nth(1).get_attribute("data-state") == "done")
    assert columns.nth(3).get_attribute("data-state") == "failed"
    assert not checks.violations(page, axe, live)
    for theme in checks.themes(page):
        checks.picture(live, f"compare_{theme}")
    checks.narrow(page, live)
    assert not checks.overflowing(live)
    checks.picture(live, "compare_narrow")
    checks.wide(live)
    columns.nth(2).locator('[data-testid="uia-compare-stop"]').click()
    still = by_id(page, "uia-compare-still")
    still.wait_for(timeout=30_000)
    by_id(page, "uia-compare-copy").nth(1).click()
    until(lambda: by_id(page, "uia-compare-copy").nth(1).inner_text() == "Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("steady says word 0")
    by_id(page, "uia-compare-copy-all").click()
    until(lambda: "== dry ==" in page.evaluate("navigator.clipboard.readText()"))
    assert "done first" in still.locator('[data-uia-column="0"]').inner_text()
    assert not checks.violations(page, axe, still)
    for theme in checks.themes(page):
        checks.picture(still, f"compare_still_{theme}")
    checks.narrow(page, still)
    assert not checks.overflowing(still)
    kept = ["".join(data["text/plain"]) for data in kept_outputs(page, server)]
    assert any("swift says word 39" in text and "out of ink" not in text.split("==")[0] for text in kept)


def test_stop_all_while_the_kernel_waits(notebook, run_all, server):
    both = "['local-smollm2-135m-instruct'] * 2"
    story = f"lab.compare('Write a very long story.', backends={both}, max_tokens=1500)"
    page = notebook([f"import uia_lab\nlab = uia_lab.connect()\nanswers = {story}"])
    before = server.status()["total_cancelled"]
    run_all()
    stop = by_id(page, "uia-compare-stop-all")
    stop.wait_for(timeout=60_000)
    page.wait_for_function(
        """() => document.querySelectorAll('.uia-compare-text')[1]?.textContent.length > 20""", timeout=60_000
    )
    stop.click()
    until(lambda: server.status()["total_cancelled"] == before + 2)
    page.wait_for_function(IDLE)
    by_id(page, "uia-compare-still").wait_for()
