"""What the notebook face costs: import, ``%load_ext``, the first widget, and an update in kernel and page.

    python -m benchmarks.notebook_face [--no-browser]

Each figure stands beside a floor measured in the same run: an empty import, ipywidgets' own slider, a page
that does nothing. The browser part starts a JupyterLab of its own with Chromium in front of it.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

from benchmarks.import_time import BODIES, measure
from tests.e2e.conftest import CHROMIUM, RUN_ALL, Server

ROUNDS = 5
UPDATES = 200
STREAM_S = 4.0
WAIT_MS = 60_000
# Without one JupyterLab asks which kernel to take.
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
CONFIG = """
c.InferenceServiceConfig.enable_hf_server = False
c.InferenceServiceConfig.enable_api_backends = False
c.InferenceServiceConfig.hf_enable_hardware_detection = False
"""
PREPARE = f"""
import time
import ipywidgets
import uia_lab
lab = uia_lab.connect()
@lab.serve(model="words")
def words(inputs):
    for number in range(200):
        time.sleep({STREAM_S} / 200)
        yield f"word{{number}} "
"""
KERNEL = f"""
from uia_lab.notebook.widgets.status_board import StatusBoard
one = dict(lab.status())
first = one["backends"][0]
reports = [
    {{**one, "in_flight": n, "backends": [{{**first, "id": f"b{{i}}", "weight": 1 + n}} for i in range(10)]}}
    for n in range({UPDATES})
]
board, slider = StatusBoard(lab._async.service, one), ipywidgets.IntSlider(max={UPDATES})
def cost(update):
    begin = time.perf_counter()
    for n in range({UPDATES}):
        update(n)
    return 1e6 * (time.perf_counter() - begin) / {UPDATES}
def show(n):
    board.report = reports[n]
def slide(n):
    slider.value = n
print("KERNEL", cost(slide), cost(show))
"""


def imports() -> None:
    """Seconds to import and to load the extension."""
    floor = statistics.median(measure(BODIES["import json (floor)"]) for _ in range(ROUNDS))
    for name in ("import uia_lab", "%load_ext uia_lab"):
        seconds = statistics.median(measure(BODIES[name]) for _ in range(ROUNDS))
        print(f"{name:42} {seconds * 1000:9.1f} ms   floor {floor * 1000:6.1f} ms (import json)")


def browser() -> None:
    """The first widget, and an update in the kernel and in the page."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        home, root = Path(folder, "home"), Path(folder, "root")
        for each in (home, home / "config", root):
            each.mkdir()
        (home / "config" / "jupyter_server_config.py").write_text(CONFIG)
        books = {
            "slider": [PREPARE, "ipywidgets.IntSlider(description='floor')"],
            "board": [PREPARE, "lab.status()"],
            "kernel": [PREPARE, KERNEL],
            "stream": [PREPARE, "print('READY')", "answer = lab.generate('go', 'words')", "print('ENDED')"],
        }
        for name, cells in books.items():
            book = nbformat.v4.new_notebook(
                cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": KERNELSPEC}
            )
            (root / f"{name}.ipynb").write_text(nbformat.writes(book))
        server = Server(home, root)
        try:
            server.start()
            with sync_playwright() as playwright:
                chromium = playwright.chromium.launch(
                    executable_path=CHROMIUM,
                    args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
                )
                try:
                    _first_widget(server, chromium)
                    _update_in_kernel(server, chromium)
                    _update_in_page(server, chromium)
                finally:
                    chromium.close()
        finally:
            server.stop()


def _opened(server: Server, chromium: Any, name: str) -> Any:
    page = chromium.new_page()
    page.goto(server.open(f"{name}.ipynb"))
    page.wait_for_selector(".jp-NotebookPanel .jp-Notebook", timeout=WAIT_MS)
    return page


def _first_widget(server: Server, chromium: Any) -> None:
    seconds = {}
    for name, selector in (("slider", ".widget-slider"), ("board", '[data-testid="uia-board"]')):
        page = _opened(server, chromium, name)
        begin = time.perf_counter()
        page.evaluate(RUN_ALL)
        page.wait_for_selector(selector, timeout=WAIT_MS)
        seconds[name] = time.perf_counter() - begin
        page.close()
    print(
        f"{'Run All to the first widget visible':42} {seconds['board'] * 1000:9.0f} ms   "
        f"floor {seconds['slider'] * 1000:6.0f} ms (ipywidgets' slider)"
    )


def _said(page: Any, word: str) -> str:
    output = page.locator(".jp-OutputArea-output", has_text=word).first
    output.wait_for(timeout=WAIT_MS)
    text: str = output.inner_text()
    return text


def _update_in_kernel(server: Server, chromium: Any) -> None:
    page = _opened(server, chromium, "kernel")
    page.evaluate(RUN_ALL)
    slide, show = map(float, _said(page, "KERNEL").split()[1:3])
    page.close()
    print(
        f"{'update of a board of 10 backends, kernel':42} {show:9.0f} us   "
        f"floor {slide:6.0f} us (ipywidgets' slider), {show / slide:.1f} times"
    )


def _update_in_page(server: Server, chromium: Any) -> None:
    page = _opened(server, chromium, "stream")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def busy() -> float:
        metrics = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    page.evaluate(RUN_ALL)
    _said(page, "READY")
    begin, before = time.perf_counter(), busy()
    _said(page, "ENDED")
    streaming = (busy() - before) / (time.perf_counter() - begin)
    begin, before = time.perf_counter(), busy()
    page.wait_for_timeout(STREAM_S * 1000)
    idle = (busy() - before) / (time.perf_counter() - begin)
    page.close()
    print(
        f"{'page busy while 50 words a second stream':42} {streaming * 100:9.1f} %    "
        f"floor {idle * 100:6.1f} % (the same page, idle)"
    )


def main() -> int:
    """Prints all of it."""
    imports()
    if "--no-browser" not in sys.argv[1:]:
        browser()
    return 0


if __name__ == "__main__":
    sys.exit(main())
