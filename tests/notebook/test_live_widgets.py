"""The widgets that follow a service, without a browser: what they keep, answer and look like in text."""

import asyncio
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from ipywidgets import Widget

from tests.node import NODE
from uia_lab.domain.errors import BadRequest
from uia_lab.notebook.chat import Chat, Settings
from uia_lab.notebook.explanation import Explanation
from uia_lab.notebook.widgets import base
from uia_lab.notebook.widgets.assets import esm, shared
from uia_lab.notebook.widgets.balancing_chart import BalancingChart
from uia_lab.notebook.widgets.base import Service
from uia_lab.notebook.widgets.dashboard import TABS, Dashboard
from uia_lab.notebook.widgets.route_view import RouteView
from uia_lab.notebook.widgets.status_board import StatusBoard

STATIC = Path(base.__file__).parent.parent / "static"
MODULES = sorted(path.name for path in STATIC.glob("*.js") if "\nexport default { " in path.read_text())

VIEW = "application/vnd.jupyter.widget-view+json"
REPORT = {
    "instance_id": "i-1",
    "total_backends": 2,
    "backends_by_status": {"healthy": 2},
    "strategy": "best_performance",
    "backends": [
        {"id": "a", "type": "gpu", "status": "healthy", "metrics": {"successful_requests": 3}},
        {"id": "b", "type": "api", "status": "healthy", "metrics": {"successful_requests": 1}},
    ],
}
DECISION = {
    "strategy": "best_performance",
    "winner": "a",
    "eligible": 2,
    "task": "text-generation",
    "model": "m",
    "candidates": [
        {"backend_id": "a", "kept": True, "reason": "", "score": 0.5, "tier": 0},
        {"backend_id": "b", "kept": False, "reason": "does not <serve> m", "score": None, "tier": 0},
    ],
}


@pytest.fixture(autouse=True)
def no_widgets_left():
    yield
    Widget.close_all()


class Transport:
    """A service's answers, in the place of a transport."""

    where = "here"
    kind = "local"

    def __init__(self):
        self.taken = 0
        self.instance = "i-1"
        self.broken = None

    async def status(self):
        if self.broken is not None:
            raise self.broken
        return {**REPORT, "instance_id": self.instance, "in_flight": self.taken}

    async def history(self, after=0, limit=900):
        self.taken += 1
        samples = [{"number": number} for number in range(after + 1, self.taken + 1)]
        return {"instance_id": self.instance, "taken": self.taken, "samples": samples, "transitions": []}

    async def explain(self, fields):
        if fields.get("task") == "dancing":
            raise BadRequest("unknown task")
        return {**DECISION, "asked": fields}


@pytest.fixture
def service():
    tasks = []

    def spawn(function, *args):
        tasks.append(asyncio.ensure_future(function(*args)))
        return tasks[-1]

    return SimpleNamespace(way=Service(Transport(), spawn), tasks=tasks)


@pytest.fixture
def told(monkeypatch):
    """What widgets send to their pages."""
    sent = []
    monkeypatch.setattr(base.LiveWidget, "send", lambda _self, content: sent.append(content))
    monkeypatch.setattr(base, "POLL_S", 0.01)
    monkeypatch.setattr(base, "LEASE_S", 0.06)
    return sent


async def test_the_kernel_reports_while_somebody_asks(service, told):
    board = StatusBoard(service.way, REPORT)
    assert (board.instance_id, board.direct) == ("i-1", False)
    board._handle_custom_msg({"type": "poll", "whole": True}, [])
    board._handle_custom_msg({"type": "poll"}, [])
    assert len(service.tasks) == 1
    await asyncio.wait_for(service.tasks[0], 10)
    assert board.report["in_flight"] >= 1
    numbers = [sample["number"] for message in told for sample in message["history"]["samples"]]
    assert numbers == list(range(1, len(numbers) + 1)), "each is told once"


async def test_all_is_told_again_after_a_restart(service, told):
    board = StatusBoard(service.way, REPORT)
    service.way.transport.taken = 40
    board._told_samples, board._told_instance = 30, "i-0"
    board._handle_custom_msg({"type": "poll"}, [])
    await asyncio.wait_for(service.tasks[0], 10)
    assert told[0]["history"]["samples"][0]["number"] == 1


async def test_an_older_server_has_a_status_all_the_same(service, told, monkeypatch):
    async def unknown(_self, _after=0, _limit=900):
        raise BadRequest("there is nothing at this address")

    monkeypatch.setattr(Transport, "history", unknown)
    board = StatusBoard(service.way, {})
    board._handle_custom_msg({"type": "poll"}, [])
    await asyncio.wait_for(service.tasks[0], 10)
    assert board.report["instance_id"] == "i-1"
    assert not told


async def test_trouble_is_told_and_the_polling_goes_on(service, told):
    board = StatusBoard(service.way, REPORT)
    service.way.transport.broken = ConnectionError("gone")
    board._handle_custom_msg({"type": "poll"}, [])
    await asyncio.wait_for(service.tasks[0], 10)
    assert {message["type"] for message in told} == {"trouble"}
    assert len(told) > 1


async def test_the_kernel_does_what_the_page_cannot(service, told):
    route = RouteView(service.way, REPORT)
    for number, (name, arguments) in enumerate(
        [
            ("explain", [{"task": "chat"}]),
            ("explain", [{"task": "dancing"}]),
            ("aclose", []),
            ("explain", [1, 2]),
        ]
    ):
        route._handle_custom_msg({"type": "ask", "id": number, "name": name, "arguments": arguments}, [])
    route._handle_custom_msg({"type": "nonsense"}, [])
    route._handle_custom_msg("nonsense", [])
    await asyncio.gather(*service.tasks)
    answers = {message["id"]: message for message in told}
    assert answers[0]["value"]["asked"] == {"task": "chat"}
    assert answers[1]["error"] == "unknown task"
    assert "cannot ask for 'aclose'" in answers[2]["error"]
    assert answers[3]["error"]


def test_a_closed_lab_leaves_the_last_report(told):
    def closed(*_):
        raise RuntimeError("closed")

    board = StatusBoard(Service(Transport(), closed), REPORT)
    board._handle_custom_msg({"type": "poll"}, [])
    board._handle_custom_msg({"type": "poll"}, [])
    assert board.report == REPORT
    assert told == [{"type": "trouble", "message": "closed"}] * 2


def test_a_notebook_has_the_code_once_and_a_widget_is_small(service):
    made = [make(service.way, REPORT) for make in (StatusBoard, BalancingChart, RouteView) for _ in range(3)]
    for widget in made:
        assert len(json.dumps(widget.get_state())) < 6_000
    sources = {reference for widget in made for reference in widget._sources}
    assert len(sources) == 5, "style, what is shared, and a file for each kind of widget"
    assert base.source("shared").text == shared()


def test_a_closed_source_is_made_again(service):
    first = StatusBoard(service.way, REPORT)
    Widget.close_all()
    again = StatusBoard(service.way, REPORT)
    assert not set(first._sources) & set(again._sources)


class Conversing:
    """The Lab of a dashboard, of which it wants a chat."""

    def chat(self):
        return Chat(None, Settings(), options=lambda tell: tell({"models": [], "backends": []}), url=None)


def test_the_dashboard_has_every_tab_and_closes_them_all(service):
    dashboard = Dashboard(Conversing(), service.way, REPORT)
    assert dashboard.names == list(TABS)
    assert dashboard.widgets == [f"anywidget:{child.model_id}" for child in dashboard.children]
    dashboard.close()
    assert all(child.comm is None for child in dashboard.children)


def test_they_are_readable_without_a_page(service):
    for widget, words in (
        (StatusBoard(service.way, REPORT), "2 of 2 backends healthy"),
        (Dashboard(Conversing(), service.way, REPORT), "2 of 2 backends healthy"),
        (BalancingChart(service.way, REPORT), "75 %"),
        (RouteView(service.way, REPORT, shown={"decision": DECISION}), "a serves text-generation"),
        (RouteView(service.way, REPORT), "no decision"),
    ):
        bundle = widget._repr_mimebundle_()
        assert VIEW in bundle
        assert words in bundle["text/plain"]
        assert words in bundle["text/html"]
    assert "<serve>" not in RouteView(service.way, REPORT, shown={"decision": DECISION}).still()["text/html"]


def test_an_explanation_is_a_mapping():
    explanation = Explanation(DECISION)
    assert (explanation.winner, explanation["eligible"], len(explanation)) == ("a", 2, len(DECISION))
    assert "could" in repr(explanation)
    assert set(explanation._repr_mimebundle_()) == {"text/plain", "text/html"}
    assert "nobody can serve" in repr(Explanation({**DECISION, "winner": None}))


@pytest.mark.e2e
@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_no_name_twice(name, tmp_path):
    (tmp_path / "module.mjs").write_text(esm(name))
    subprocess.run([NODE, "--check", "module.mjs"], cwd=tmp_path, check=True)


TRACE = """
const trace = makeTrace();
const told = (instance_id, taken, numbers, transitions = []) => ({ instance_id, taken, transitions,
  samples: numbers.map((number) => ({ number, at: number })) });
trace.take(told("i", 3, [1, 2, 3], [{ backend_id: "a", status: "healthy", routable: true, at: 2 }]));
trace.take(told("i", 4, [3, 4], [{ backend_id: "a", status: "healthy", routable: true, at: 2.001 }]));
say("known", trace.samples.map((sample) => sample.number), trace.transitions.length);
trace.take(told("other", 900, []));
say("another", trace.samples.length, trace.taken);
trace.take(told("other", 900, Array.from({ length: 900 }, (_, index) => index + 1)));
trace.take(told("other", 950, Array.from({ length: 50 }, (_, index) => index + 901)));
say("bounded", trace.samples.length, trace.samples[0].number, trace.samples.at(-1).number);
let drawn = 0;
let state = 0;
let last = 0;
const painter = makePainter(() => { drawn += 1; last = state; });
const began = performance.now();
const storm = setInterval(() => {
  for (let index = 0; index < 50 && state < 5000; index += 1) { state += 1; painter(); }
  if (state < 5000 || performance.now() - began < 2000) return;
  clearInterval(storm);
  setTimeout(() => say("storm", last, drawn / ((performance.now() - began) / 1000)), 200);
}, 20);
"""


@pytest.mark.e2e
def test_what_happened_is_kept_and_a_storm_is_drawn_calmly(tmp_path):
    head = "const say = (...words) => console.log(JSON.stringify(words));\n"
    (tmp_path / "main.mjs").write_text(f"{shared()}\n{head}{TRACE}")
    run = subprocess.run([NODE, "main.mjs"], cwd=tmp_path, check=True, stdout=subprocess.PIPE, timeout=60)
    said = {words[0]: words[1:] for words in map(json.loads, run.stdout.splitlines())}
    assert said["known"] == [[1, 2, 3, 4], 1]
    assert said["another"] == [0, 0]
    assert said["bounded"] == [900, 51, 950]
    assert said["storm"][0] == 5000
    assert said["storm"][1] < 15
