import asyncio
import concurrent.futures
import json
import threading
import time

import pandas as pd
import pytest

from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.errors import BadRequest, ModelNotFound
from uia_lab.notebook.async_lab import AsyncLab
from uia_lab.notebook.batch import Batch, BatchItem
from uia_lab.notebook.batch_progress import CellProgress, bar
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport

TEXT = BackendCapabilities({"text-generation"}, supports_streaming=True)


@pytest.fixture(params=["local", "server"])
def lab(request):
    if request.param == "local":
        transport = InProcessTransport(request.getfixturevalue("service"))
    else:
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    with Lab(transport) as lab:
        yield lab


@pytest.fixture
def local(service):
    with Lab(InProcessTransport(service)) as lab:
        yield lab


def served(lab):
    return lab.status()["total_requests"]


def test_answers_come_in_the_order_of_the_prompts(lab, capsys):
    prompts = [f"word{number} " * (1 + number % 3) for number in range(20)]
    batch = lab.map(prompts, model="w", concurrency=5)
    assert batch.texts == [" ".join(prompt.split()) + " " for prompt in prompts]
    assert batch.counts["done"] == len(batch) == 20
    assert batch.done
    assert (batch[3].backend, batch[3].usage.output_tokens) == ("words", 1)
    assert "20 of 20 done" in capsys.readouterr().err
    assert "word0" in repr(batch)
    assert "and 10 more" in batch._repr_mimebundle_()["text/html"]


def test_rows_and_a_template(lab):
    frame = pd.DataFrame({"name": ["ann", "bob"], "age": [3, 4]}, index=[7, 9])
    batch = lab.map(frame, template="{name} is {age}", model="w", show=False)
    made = batch.frame()
    assert list(made.index) == [7, 9]
    assert list(made.columns[:3]) == ["name", "age", "text"]
    assert list(made["text"]) == ["ann is 3 ", "bob is 4 "]
    assert list(frame.columns) == ["name", "age"]
    rows = lab.map([{"x": 1}], template="{{{x}}}", model="w", show=False)
    assert rows.texts == ["{1} "]
    texts = lab.map(
        (word for word in ("a", "b")), template="say {prompt}", model="w", max_tokens=1, show=False
    )
    assert texts.texts == ["say ", "say "]
    assert list(texts.frame()["prompt"]) == ["say a", "say b"]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("one", {}, "several"),
        (3, {}, "several"),
        ([], {}, "no prompts"),
        (["a", ""], {}, "prompt 1 is empty"),
        ([1], {}, "must be a text"),
        ([{"x": 1}], {}, "template"),
        ([{"text": 1}], {"template": "{txet}"}, "Did you mean 'text'"),
        (["a"], {"template": "{0}"}, "does not work"),
        (["a"], {"concurrency": 0}, "concurrency"),
        (["a"], {"keep": "/"}, "cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is(local, prompts, options, message):
    with pytest.raises(BadRequest, match=message):
        local.map(prompts, model="w", show=False, **options)
    assert served(local) == 0


def test_one_that_fails_does_not_end_the_others(lab):
    @lab.serve(model="picky")
    def picky(inputs):
        if "bad" in inputs[-1]["content"]:
            raise ValueError("no")
        return "fine"

    batch = lab.map(["good", "bad", "good"], model="picky", concurrency=1, show=False)
    assert [item.state for item in batch] == ["done", "failed", "done"]
    assert batch.texts == ["fine", None, "fine"]
    (failed,) = batch.failed
    assert (failed.index, failed.error.code) == (1, "backend_failed")
    assert batch.frame()["error"].notna().tolist() == [False, True, False]
    picky.stop()


def test_what_is_hopeless_ends_at_once(lab, service):
    service.get_backend_manager().unregister_backend("lengths")
    with pytest.raises(ModelNotFound, match="nowhere"):
        lab.map(["x"] * 50, model="nowhere", concurrency=2, show=False)
    assert served(lab) <= 4


def test_a_full_house_is_waited_for(local, monkeypatch):
    manager = local._async.spawn(local._transport.manager).result(30)
    active, most = 0, 0

    async def slow():
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.01)
        active -= 1
        return "ok"

    manager.register_backend("slow", "gpu", "Slow", slow, TEXT, max_concurrency=1)
    manager.router.queue.size = 1
    monkeypatch.setattr("uia_lab.notebook.batch_run.LONGEST_PAUSE_S", 0.02)
    batch = local.map(["x"] * 8, backend="slow", concurrency=3, show=False)
    assert batch.texts == ["ok"] * 8
    assert most == 1
    assert local.status()["total_rejected"] > 0


def test_a_key_that_may_ask_less_at_once_gets_every_answer(server, service):
    with Lab(HttpTransport(server.url, server.key)) as admin:
        made = admin.keys.create("small", scopes=["infer", "read"], max_concurrent=2)
        with Lab(HttpTransport(server.url, made.key)) as lab:
            batch = lab.map([f"word{n}" for n in range(20)], model="w", concurrency=8, show=False)
        assert batch.counts["done"] == 20
        # Who is refused waits for another's end, and does not knock again and again.
        assert admin.status()["total_rejected"] <= 6 + 20


def test_no_more_at_once_than_asked_for(local):
    manager = local._async.spawn(local._transport.manager).result(30)
    active, most = 0, 0

    async def counted():
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.02)
        active -= 1
        return "ok"

    manager.register_backend("counted", "gpu", "Counted", counted, TEXT)
    local.map(["x"] * 12, backend="counted", concurrency=3, show=False)
    assert most == 3


def test_cancelling_keeps_what_is_done(lab):
    prompts = ["quick"] * 3 + ["slowly " + "on " * 500] * 5
    batch = lab.map(prompts, model="w", concurrency=2, show=False, wait=False)
    deadline = time.monotonic() + 50
    while batch.counts["done"] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    batch.cancel()
    batch.wait(50)
    assert batch.texts == ["quick "] * 3 + [None] * 5
    assert batch.counts == {"done": 3, "failed": 0, "stopped": 5, "running": 0, "waiting": 0}
    while lab.status()["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lab.status()["in_flight"] == 0
    batch.cancel()


def test_an_interrupt_ends_it_and_gives_what_there_is(local, monkeypatch):
    waited = threading.Event.wait
    interrupted = []

    def wait(event, timeout=None):
        if not interrupted and timeout is None and threading.current_thread() is threading.main_thread():
            interrupted.append(True)
            raise KeyboardInterrupt
        return waited(event, timeout)

    batch = local.map(["slowly " + "on " * 500] * 4, model="w", concurrency=2, show=False, wait=False)
    monkeypatch.setattr(threading.Event, "wait", wait)
    assert batch.wait() is batch
    monkeypatch.undo()
    assert batch.wait(50).counts["stopped"] == 4


def test_a_restart_goes_on_where_the_file_ends(lab, tmp_path):
    keep = tmp_path / "answers.jsonl"
    first = lab.map(["a", "b", "b"], model="w", keep=keep, show=False)
    assert served(lab) == 3
    assert keep.stat().st_mode & 0o777 == 0o600
    # The kernel ended while a line was written.
    with keep.open("a") as file:
        file.write('{"key": "torn')
    second = lab.map(["b", "a", "c", "b"], model="w", keep=keep, show=False)
    assert served(lab) == 4
    assert second.texts == ["b ", "a ", "c ", "b "]
    assert [item.kept for item in second] == ["file", "file", None, "file"]
    assert second[0].usage == first[1].usage
    assert "3 from before" in second.summary()
    # Another temperature is another question.
    lab.map(["a"], model="w", temperature=0.5, keep=keep, show=False)
    assert served(lab) == 5
    lines = [line for line in keep.read_text().splitlines() if not line.startswith('{"key": "torn')]
    assert all("text" in json.loads(line) for line in lines)
    assert lab.map(["c"], model="w", keep=keep, show=False)[0].kept == "file"


def test_a_file_that_holds_something_else_is_left_alone(lab, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    with pytest.raises(BadRequest, match="something else"):
        lab.map(["a"], model="w", keep=other, show=False)
    assert other.read_text() == "my notes\n"
    assert served(lab) == 0


def test_the_log_helps_where_it_keeps_answers(lab, service):
    lab.map(["a", "b"], model="w", show=False)
    again = lab.map(["a", "b"], model="w", since="2020-01-01", show=False)
    assert [item.kept for item in again] == [None, None]
    service.get_backend_manager().log_prompts = True
    lab.map(["a", "b"], model="w", system="short", show=False)
    before = served(lab)
    third = lab.map(["b", "a", "c"], model="w", system="short", since="2020-01-01", show=False)
    assert third.texts == ["b ", "a ", "c "]
    assert [item.kept for item in third] == ["log", "log", None]
    assert served(lab) == before + 1


async def test_to_await(service):
    async with AsyncLab(InProcessTransport(service)) as lab:
        service.get_backend_manager().unregister_backend("lengths")
        batch = await lab.map(["a", "b"], model="w", show=False)
        assert batch.texts == ["a ", "b "]
        with pytest.raises(ModelNotFound):
            await lab.map(["a"], model="nowhere", show=False)
        running = await lab.map(["slowly " + "on " * 500] * 3, model="w", show=False, wait=False)
        waiting = asyncio.ensure_future(lab.map(["slowly " + "on " * 500] * 3, model="w", show=False))
        while (await lab.status())["in_flight"] < 6:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        running.cancel()
        assert (await running).counts["stopped"] == 3
        async with asyncio.timeout(50):
            while (await lab.status())["in_flight"]:
                await asyncio.sleep(0.01)


def test_closing_the_lab_ends_it(service):
    lab = Lab(InProcessTransport(service))
    batch = lab.map(["slowly " + "on " * 500] * 3, model="w", show=False, wait=False)
    lab.close()
    assert batch.wait(30).counts["done"] == 0
    assert batch.done
    batch.cancel()


def test_the_bar_is_written_now_and_then_and_at_the_end(monkeypatch):
    shown, now = [], [0.0]
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, **how: shown.append((bundle, how["update"]))
    )
    batch = Batch([BatchItem(number, "x") for number in range(4)])
    progress = CellProgress(batch, lambda: now[0])
    for item in batch:
        item.state = "done"
        progress.changed(batch)
    assert len(shown) == 1
    now[0] = 1.0
    progress.changed(batch)
    progress.ended(batch)
    assert [update for _, update in shown] == [False, True, True]
    assert shown[-1][0]["text/plain"] == "4 of 4 done"
    assert 'max="4" value="4"' in bar(batch)


async def test_whoever_is_cancelled_as_a_batch_ends_hears_of_it():
    batch = Batch([BatchItem(0, "a")])
    running = concurrent.futures.Future()
    batch.begin(running, lambda: None)
    reading = asyncio.ensure_future(batch._end_of_it())
    await asyncio.sleep(0)
    # As when the Lab's thread ends it while the reader's own loop is being cancelled.
    reading.cancel()
    running.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await reading


def test_an_item_is_told_in_a_line():
    failed = BatchItem(3, "word " * 20_000, "failed", error=BadRequest("too long"))
    assert repr(failed).startswith("<BatchItem 3, failed: 'word word")
    assert repr(failed).endswith("…' → too long>")
    assert len(repr(failed)) < 200
