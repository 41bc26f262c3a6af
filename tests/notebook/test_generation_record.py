import threading

import pytest

from uia_lab.domain.errors import BackendFailed, BadRequest, Cancelled, DeadlineExceeded
from uia_lab.domain.events import Attempted, Chunk, Finished, Reasoning, Started, Switched, Text, Usage
from uia_lab.notebook.generation import Generation


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def record(clock):
    return Generation("a question", "m", clock=clock)


def finished(text, tokens):
    return Finished(text, Usage(4, tokens), "stop", (Attempted("two", "ok", 1.0),))


def test_figures_come_from_its_clock(record, clock):
    assert (record.state, record.time_to_first_token, record.tokens_per_second) == ("waiting", None, None)
    record.feed(Started("one"), "req-1")
    clock.now += 0.5
    record.feed(Chunk(0, Text("a")))
    assert record.state == "streaming"
    clock.now += 1
    record.feed(Chunk(1, Text("b")))
    record.feed(finished("ab", 5))
    clock.now += 100
    assert record.time_to_first_token == 0.5
    assert record.tokens_per_second == 4
    assert record.elapsed == 1.5
    assert (record.text, record.request_id, record.backend, record.state) == ("ab", "req-1", "two", "done")


def test_one_piece_tells_nothing_of_the_rate(record, clock):
    record.feed(Chunk(0, Text("a b c")))
    clock.now += 0.001
    record.feed(finished("a b c", 3))
    assert record.tokens_per_second is None
    assert "tok/s" not in record._repr_mimebundle_()["text/plain"]


def test_reasoning_and_other_choices_are_not_the_text(record):
    record.feed(Chunk(0, Reasoning("hm")))
    record.feed(Chunk(1, Text("x"), choice=1))
    assert (record.text, record.state) == ("", "waiting")


def test_a_switch_changes_the_backend(record):
    record.feed(Started("one"))
    record.feed(Switched("one", "three", "broke", 0))
    assert record.backend == "three"


@pytest.mark.parametrize(
    ("error", "state", "kind"),
    [
        (Cancelled("by you"), "stopped", type(None)),
        (BackendFailed("no"), "failed", BackendFailed),
        (TimeoutError(), "failed", DeadlineExceeded),
        (OSError("gone"), "failed", BackendFailed),
    ],
)
def test_it_ends_once_with_what_ended_it(record, error, state, kind):
    record.feed(Chunk(0, Text("part")))
    record.fail(error)
    record.fail(BackendFailed("later"))
    record.feed(finished("whole", 1))
    assert (record.state, record.text) == (state, "part")
    assert isinstance(record.error, kind)


def test_a_broken_listener_does_not_break_the_answer(record):
    record.subscribe(lambda: 1 / 0)
    record.feed(finished("ab", 2))
    assert record.text == "ab"


def test_waiting(record):
    with pytest.raises(TimeoutError, match="still running"):
        record.wait(0.01)
    threading.Timer(0.02, lambda: record.feed(finished("ab", 2))).start()
    assert record.wait(50) is record


def test_an_interrupt_stops_the_request(clock, monkeypatch):
    stopped = []
    record = Generation("q", stop=lambda it: (stopped.append(it), it.fail(Cancelled("stopped"))), clock=clock)
    calls = iter([KeyboardInterrupt])

    def wait(timeout=None):
        for kind in calls:
            raise kind
        return True

    monkeypatch.setattr(record._ended, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        record.wait()
    assert stopped == [record]
    assert record.state == "stopped"


def test_its_faces(record, clock):
    record.feed(Chunk(0, Text("1 < 2 ")))
    clock.now += 1
    record.feed(Chunk(1, Text("& <b>")))
    record.feed(finished("1 < 2 & <b>", 3))
    bundle = record._repr_mimebundle_()
    assert "1 &lt; 2 &amp; &lt;b&gt;" in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]
    assert bundle["text/plain"].startswith("1 < 2 & <b>")
    assert "2.0 tok/s" in bundle["text/plain"]
    assert str(record) == "1 < 2 & <b>"
    assert "done" in repr(record)


def test_where_it_went_on_elsewhere_is_kept_with_its_place(record, clock):
    record.feed(Started("one"))
    record.feed(Chunk(0, Text("Once <upon> ")))
    clock.now += 2
    record.feed(Switched("one", "two", "cut <off>", 1))
    record.feed(Chunk(1, Text("a time")))
    trail = (Attempted("one", "failed", 2000.0, "backend_failed", "cut <off>"), Attempted("two", "ok", 10.0))
    record.feed(Finished("Once <upon> a time", Usage(4, 4), "stop", trail))
    (turn,) = record.turns
    assert (turn.offset, turn.from_id, turn.to_id, turn.at_s) == (12, "one", "two", 2.0)
    html = record.html("mark-1")
    assert 'data-uia-mark="mark-1"' in html
    assert html.index("Once &lt;upon&gt; <span") < html.index("one → two at 2.00 s: cut &lt;off&gt;")
    assert "2 attempts" in html
    assert "[one → two at 2.00 s: cut <off> after 12 characters]" in record.to_text()
    assert record.tried == {"one", "two"}


def test_asking_again_needs_an_end_and_a_lab(record):
    with pytest.raises(BadRequest, match="still running"):
        record.retry()
    record.feed(finished("ab", 2))
    with pytest.raises(BadRequest, match="no Lab"):
        record.retry()
    with pytest.raises(BadRequest, match="no Lab"):
        record.to_openai()
