"""GenerationView, clicked: stop, ask elsewhere, copy, copy as code, and a failover seen in the margin."""

import json
import re

import pytest

from tests.e2e import checks
from tests.e2e.cells import IDLE, by_id, kept_outputs, local_functions, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

BREAKING = """
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
import asyncio
from pathlib import Path

WORDS = ("The lighthouse keeper counted the ships that passed in the night and wrote each of them "
         "down, because somebody would ask one day, and nobody else was awake to know what had gone by "
         "in the dark. "
         "In the morning he read the list to the gulls, who disagreed about the third one.").split()

class Told:
    capabilities = BackendCapabilities({"text-generation"}, {"tale"}, supports_streaming=True,
                                       resume=True, model_digest={"tale": "d1"})
    def __init__(self, breaks_after=None):
        self.breaks_after = breaks_after
    async def start(self): ...
    async def stop(self): ...
    async def probe(self):
        return Probe(BackendStatus.HEALTHY, "here")
    async def infer(self, request):
        yield Started("")
        said = request.resumed.text if request.resumed else ""
        rest = WORDS[len(said.split()):]
        for number, word in enumerate(rest):
            if number == self.breaks_after:
                await asyncio.sleep(0.4)
                raise BackendFailed("the engine was killed")
            while said and number == 6 and not Path("go-on").exists():
                # One that says nothing for a second after such a pace has broken off.
                await asyncio.sleep(0.2)
                yield Chunk(number, Text(""))
            await asyncio.sleep(0.03)
            yield Chunk(number, Text(word + " "))
        yield Finished(" ".join(rest), Usage(7 + len(said.split()), len(rest)))

async def add():
    manager = await transport.manager()
    manager.set_strategy("round_robin")
    manager.register_backend("harbour", "gpu", "Harbour", Told(breaks_after=24), weight=100.0)
    manager.register_backend("island", "gpu", "Island", Told())
    for name in ("harbour", "island"):
        await manager.probe(name)

lab._thread.ask(add)
"""


def test_a_failover_is_seen_in_the_margin_and_the_answer_can_be_asked_elsewhere(
    notebook, run_all, axe, server
):
    page = notebook(
        [local_functions() + BREAKING, "answer = lab.generate('Tell me of the lighthouse', 'tale')"]
    )
    run_all()
    live = by_id(page, "uia-generation-live")
    by_id(page, "uia-generation-turn").first.wait_for(timeout=60_000)
    assert not checks.violations(page, axe, live)
    for theme in checks.themes(page):
        checks.picture(live, f"generation_live_{theme}")
    (server.root / "go-on").touch()
    still = by_id(page, "uia-generation")
    still.wait_for(timeout=30_000)
    turn = by_id(still, "uia-generation-turn")
    assert "harbour → island" in turn.inner_text()
    assert "the engine was killed" in turn.inner_text()
    attempts = by_id(still, "uia-generation-attempts")
    attempts.locator("summary").click()
    assert "harbour: failed" in attempts.inner_text()
    assert "island: ok" in attempts.inner_text()
    by_id(page, "uia-generation-elsewhere").click()
    by_id(page, "uia-generation-place").nth(2).wait_for()
    for theme in checks.themes(page):
        checks.picture(still, f"generation_failover_{theme}")
    checks.narrow(page, still)
    assert not checks.overflowing(still)
    checks.picture(still, "generation_failover_narrow")
    checks.wide(still)
    assert not checks.violations(page, axe, still)

    page.locator('[data-testid="uia-generation-place"][data-backend="island"]').click()
    by_id(page, "uia-generation-live").wait_for()
    page.wait_for_selector('[data-testid="uia-generation"][data-state="done"]', timeout=30_000)
    assert by_id(page, "uia-generation-turn").count() == 0
    assert "backend island" in by_id(page, "uia-generation-summary").inner_text()
    texts = kept_outputs(page, server)
    assert any("In the morning he read the list" in "".join(data["text/plain"]) for data in texts)


def test_text_and_code_are_copied_and_the_code_asks_the_same(notebook, run_all, server):
    page = notebook(
        ["import uia_lab\nlab = uia_lab.connect()\nanswer = lab.generate('Say hello.', max_tokens=8)"]
    )
    run_all()
    by_id(page, "uia-generation-copy").click(timeout=60_000)
    until(lambda: by_id(page, "uia-generation-copy").inner_text() == "Copied")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == by_id(page, "uia-generation-text").inner_text() or text.strip()
    by_id(page, "uia-generation-code").click()
    until(lambda: by_id(page, "uia-generation-code").inner_text() == "Copied")
    code = page.evaluate("navigator.clipboard.readText()")
    assert "client.chat.completions.create(" in code
    assert "max_tokens=8" in code
    assert server.token not in code
    assert not re.search(r"uia-[A-Za-z0-9]{20}", code)
    compile(code, "snippet", "exec")


def test_a_server_killed_in_the_middle_is_told_and_another_one_is_asked(
    notebook, run_all, server, fault_server, axe
):
    fault_server.switch("stalled mid-stream", after=4)
    server.ask(
        "POST",
        "backends",
        {
            "id": "shaky",
            "type": "api",
            "endpoint": fault_server.url + "/v1",
            "models": ["m"],
            "dialect": "openai",
        },
    )
    try:
        ask = "answer = lab.generate('hello', 'm', wait=False, timeout=60)"
        page = notebook([f"import uia_lab\nlab = uia_lab.connect()\n{ask}"])
        run_all()
        page.wait_for_function(
            """() => document.querySelector('[data-testid="uia-generation-text"]')?.textContent.length > 8""",
            timeout=60_000,
        )
        fault_server.kill()
        page.wait_for_selector('[data-testid="uia-generation"][data-state="failed"]', timeout=30_000)
        still = by_id(page, "uia-generation")
        assert "t0 t1" in by_id(still, "uia-generation-text").inner_text()
        fault_server.revive()
        until(lambda: server.ask("POST", "backends/shaky/probe")["routable"], 30)
        by_id(page, "uia-generation-elsewhere").click()
        place = page.locator('[data-testid="uia-generation-place"][data-backend="shaky"]')
        place.wait_for()
        assert "(tried)" in place.inner_text()
        for theme in checks.themes(page):
            checks.picture(still, f"generation_failed_{theme}")
        place.click()
        page.wait_for_selector('[data-testid="uia-generation"][data-state="done"]', timeout=30_000)
        assert "t7" in by_id(page, "uia-generation-text").inner_text()
        # Any other than the only one there is: refused, with the reason.
        by_id(page, "uia-generation-elsewhere").click()
        by_id(page, "uia-generation-place").first.click()
        page.wait_for_selector('[data-testid="uia-generation"][data-state="failed"]', timeout=30_000)
        assert "excluded by the request" in by_id(page, "uia-generation-error").inner_text()
    finally:
        server.ask("DELETE", "backends/shaky")
    page.wait_for_function(IDLE)
    assert json.dumps(server.status()["in_flight"]) == "0"
