import asyncio
import re
import threading

import pytest

from uia_lab.domain.errors import BackendFailed, Cancelled
from uia_lab.domain.events import Chunk, Finished, Started, Text
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.status import StatusReport, html, text
from uia_lab.notebook.widgets.assets import css, esm
from uia_lab.notebook.widgets.coalesce import Coalescer
from uia_lab.notebook.widgets.generation_view import GenerationView

WIDGET = "application/vnd.jupyter.widget-view+json"
REPORT = {
    "instance_id": "i-1",
    "total_backends": 1,
    "backends_by_status": {"healthy": 1},
    "strategy": "best_performance",
    "in_flight": 1,
    "total_successful": 7,
    "backends": [
        {
            "id": "local",
            "name": "Local <models>",
            "type": "gpu",
            "status": "healthy",
            "metrics": {"active_connections": 1, "p50_latency_ms": 84.6, "successful_requests": 7},
        }
    ],
}


@pytest.fixture(autouse=True)
def no_widgets_left():
    yield
    GenerationView.close_all()


async def test_changes_are_coalesced_and_the_last_one_is_sent():
    sent, now = [], 0
    coalescer = Coalescer(lambda: sent.append(now), lambda: 0.05)
    for _ in range(100):
        now += 1
        coalescer.touch()
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.08)
    assert sent[0] == 1
    assert sent[-1] == 100
    assert len(sent) <= 2 + 0.5 / 0.05


async def test_a_loop_that_stands_still_holds_nothing_back():
    """A chat that is used in a cell: the kernel's own loop does not turn until the cell has ended."""
    sent, now = [], 100.0
    coalescer = Coalescer(lambda: sent.append(now), lambda: 0.05, lambda: now)
    coalescer.touch()
    now += 0.01
    coalescer.touch()
    assert sent == [100.0]

    async def answer():
        nonlocal now
        for _ in range(10):
            now += 0.02
            coalescer.touch()

    # The Lab's loop, while this one waits.
    thread = threading.Thread(target=asyncio.run, args=(answer(),))
    thread.start()
    thread.join(20)
    assert len(sent) >= 4
    coalescer.flush()


async def test_a_flush_takes_the_waiting_change_along():
    sent = []
    coalescer = Coalescer(lambda: sent.append(1), lambda: 0.02)
    coalescer.touch()
    coalescer.touch()
    coalescer.flush()
    await asyncio.sleep(0.04)
    assert len(sent) == 2


async def test_the_view_follows_the_record():
    record = Generation("q", "m")
    view = GenerationView(record, direct=True)
    assert (view.state, view.text, view.direct, view.model) == ("waiting", "", True, "m")
    record.feed(Started("local"), "req-1")
    record.feed(Chunk(0, Text("hel")))
    record.feed(Finished("hello"))
    assert (view.state, view.text, view.backend, view.request_id) == ("done", "hello", "local", "req-1")
    bundle = view._repr_mimebundle_()
    assert bundle[WIDGET]["model_id"] == view.model_id
    assert "hello" in bundle["text/plain"]
    assert "hello" in bundle["text/html"]


async def test_the_view_shows_a_failure():
    record = Generation("q")
    view = GenerationView(record, direct=False)
    record.fail(BackendFailed("out of paper"))
    assert (view.state, view.error) == ("failed", "out of paper")


async def test_stop_from_the_browser():
    record = Generation("q", stop=lambda it: it.fail(Cancelled("stopped")))
    view = GenerationView(record, direct=False)
    view._handle_custom_msg({"type": "nonsense"}, [])
    assert view.state == "waiting"
    view._handle_custom_msg({"type": "stop"}, [])
    assert view.state == "stopped"


def test_reports_have_text_and_html_without_a_kernel():
    report = StatusReport(REPORT, live=lambda _: pytest.fail("no widget outside a kernel"))
    assert report["strategy"] == "best_performance"
    assert "1 of 1 backend healthy" in repr(report)
    assert set(report._repr_mimebundle_()) == {"text/plain", "text/html"}
    strange = {"backends": [{"id": "<script>", "status": "new"}]}
    assert "<script>" not in html(strange)
    assert "? new" in text(strange)


@pytest.mark.parametrize(
    "name", ["generation_view.js", "status_board.js", "balancing_chart.js", "route_view.js", "dashboard.js"]
)
def test_the_module_is_one_and_needs_nothing_else(name):
    module = esm(name)
    assert not re.search(r"^\s*(//|/\*)|^ ", module + css(), re.MULTILINE), "comments are not saved"
    assert not [line for line in module.splitlines() if line.count("`") % 2], "they may not go over lines"
    assert "import " not in re.sub(r"//.*", "", module)
    assert module.count("export default") == 1
    # The name of SVG is no address.
    assert "http://" not in module.replace("http://www.w3.org/2000/svg", "") + css()
    assert "https://" not in module + css()
