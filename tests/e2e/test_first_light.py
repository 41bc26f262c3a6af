import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e import checks
from tests.e2e.cells import IDLE, by_id, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

NOTEBOOK = Path(__file__).parents[2] / "notebooks/01_first_light.ipynb"
SCREENSHOTS = Path(__file__).parent / "screenshots"
ANSWER_MS = 60_000

# Notes the length of a live answer at each change of it.
WATCH = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const text = document.querySelector('.uia-generation [data-testid="uia-generation-text"]');
    if (text) window.lengths.push(text.textContent.length);
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def command(page, name, **arguments):
    page.evaluate(f"(args) => jupyterapp.commands.execute('{name}', args)", arguments)


def ok_requests(page):
    row = page.locator('[data-testid="uia-board-row"][data-backend^="local-smollm2"]')
    return int(row.first.locator(".uia-c-ended").text_content().split("/")[0])


def test_the_notebook_tells_its_story(notebook, run_all, server):
    page = notebook(NOTEBOOK)
    command(page, "application:toggle-left-area")
    page.evaluate(WATCH)
    run_all()
    page.wait_for_function(IDLE, timeout=ANSWER_MS)

    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    grown = sorted(set(page.evaluate("window.lengths")))
    assert len(grown) > 5, "the text came in pieces"
    answers = by_id(page, "uia-generation-text").all_inner_texts()
    assert len(answers) == 2
    assert all(len(answer) > 40 for answer in answers)
    boards = by_id(page, "uia-board")
    assert boards.count() == 2
    page.wait_for_function(
        """() => [...document.querySelectorAll('[data-testid="uia-board-connection"]')]
               .every((pill) => pill.textContent === 'live')"""
    )
    assert ok_requests(page) >= 2
    assert page.evaluate(
        """() => [...document.querySelectorAll('.uia')].every((box) => box.scrollWidth <= box.clientWidth)"""
    )

    SCREENSHOTS.mkdir(exist_ok=True)
    for name in checks.themes(page):
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        page.wait_for_timeout(500)
        page.screenshot(path=SCREENSHOTS / f"first_light_{name}.png")

    command(page, "docmanager:save")
    saved = server.root / NOTEBOOK.name

    def outputs():
        cells = json.loads(saved.read_text())["cells"]
        return [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]

    kept = until(
        lambda: [data for data in outputs() if "uia-generation" in "".join(data.get("text/html", ""))]
    )
    assert len(kept) == 2
    for data, answer in zip(kept, answers, strict=True):
        assert answer.strip()[:40] in "".join(data["text/plain"])


def test_the_table_moves_while_the_kernel_is_busy(notebook, run_all, server):
    page = notebook(["import uia_lab\nuia_lab.connect().status()", "import time\ntime.sleep(60)"])
    run_all()
    by_id(page, "uia-board-row").first.wait_for(timeout=30_000)
    page.wait_for_function("() => document.body.innerText.includes('[*]')")
    before = ok_requests(page)
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(lambda _: server.ask("POST", "v1/chat/completions", body), range(3)))
    until(lambda: ok_requests(page) == before + 3)
    assert page.locator(".jp-InputPrompt", has_text="[*]").count() == 1, "the kernel is still in its cell"
    command(page, "kernelmenu:interrupt")


def test_a_narrow_page_has_no_overflow(notebook, run_all):
    page = notebook(["import uia_lab\nuia_lab.connect().status()"])
    page.set_viewport_size({"width": 720, "height": 900})
    command(page, "application:toggle-left-area")
    run_all()
    board = by_id(page, "uia-board")
    board.wait_for(timeout=30_000)
    page.wait_for_function(IDLE)
    assert board.bounding_box()["width"] <= 640
    assert page.evaluate(
        """() => [...document.querySelectorAll('.uia, .uia-scroll')]
               .every((box) => box.scrollWidth <= box.clientWidth)"""
    )
    page.screenshot(path=SCREENSHOTS / "narrow.png")


@pytest.mark.parametrize("wait", [True, False], ids=["waiting kernel", "free kernel"])
def test_stop_ends_the_request_as_cancelled(notebook, run_all, server, wait):
    story = f"lab.generate('Write a very long story.', max_tokens=1500, wait={wait})"
    page = notebook([f"import uia_lab\nlab = uia_lab.connect()\nanswer = {story}"])
    before = server.status()["total_cancelled"]
    run_all()
    stop = by_id(page, "uia-generation-stop")
    stop.wait_for(timeout=30_000)
    page.wait_for_function(
        """() => document.querySelector('[data-testid="uia-generation-text"]')?.textContent.length > 20""",
        timeout=ANSWER_MS,
    )
    if wait:
        page.screenshot(path=SCREENSHOTS / "streaming.png")
    stop.click()
    until(lambda: server.status()["total_cancelled"] == before + 1)
    page.wait_for_selector('[data-testid="uia-generation"][data-state="stopped"]', timeout=10_000)
    page.wait_for_function(IDLE)
    assert "stopped" in by_id(page, "uia-generation-summary").inner_text()
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert server.status()["in_flight"] == 0


def test_local_mode_works_without_the_server(notebook, run_all):
    page = notebook(
        [
            "import uia_lab\nlab = uia_lab.connect('local')\nlab",
            "answer = lab.generate('Write a very long story.', max_tokens=1500, seed=3, wait=False)",
        ]
    )
    run_all()
    page.wait_for_function(
        """() => document.querySelector('[data-testid="uia-generation-text"]')?.textContent.length > 20""",
        timeout=ANSWER_MS,
    )
    by_id(page, "uia-generation-stop").click()
    page.wait_for_selector('[data-testid="uia-generation"][data-state="stopped"]', timeout=10_000)
    page.wait_for_function(IDLE)
    assert by_id(page, "uia-board-connection").inner_text() == "from kernel"
    until(lambda: "1 cancelled" in by_id(page, "uia-board-totals").inner_text())
