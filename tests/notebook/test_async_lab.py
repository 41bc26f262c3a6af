import asyncio
import inspect

import pytest
from anyio import move_on_after

import uia_lab
from uia_lab.domain.errors import BadRequest, DeadlineExceeded, InferenceError
from uia_lab.notebook.asking import answered, asked, within
from uia_lab.notebook.async_lab import AsyncLab
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.transport import NotConnected

# What only a face has: how it is closed and opened, and what joins the two.
LAB_ONLY = {"close"}
ASYNC_ONLY = {"aclose", "open", "service", "spawn"}


@pytest.fixture(params=["local", "server"])
async def lab(request):
    if request.param == "local":
        transport = InProcessTransport(request.getfixturevalue("service"))
    else:
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    async with AsyncLab(transport) as lab:
        yield lab


def faces(cls):
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


def test_both_have_the_same():
    sync, other = faces(Lab), faces(AsyncLab)
    assert set(sync) - LAB_ONLY == set(other) - ASYNC_ONLY
    for name in set(sync) - LAB_ONLY:
        mine, its = sync[name], other[name]
        assert isinstance(mine, answered) == isinstance(its, asked), name
        assert isinstance(mine, property) == isinstance(its, property), name
        assert mine.__doc__, name
        if callable(mine) and not isinstance(mine, answered):
            arguments = [list(inspect.signature(item).parameters.values())[1:] for item in (mine, its)]
            assert arguments[0] == arguments[1], name
            assert not inspect.iscoroutinefunction(mine), name


async def test_generates(lab):
    assert lab.instance_id == (await lab.status())["instance_id"]
    answer = await lab.generate("one two three", model="w", max_tokens=2)
    assert (answer.text, answer.state, answer.backend) == ("one two ", "done", "words")
    detached = await lab.generate("slowly " + "on " * 5, model="w", wait=False)
    assert not detached.done
    assert (await detached).text.startswith("slowly on")
    with pytest.raises(InferenceError, match="out of paper"):
        await lab.generate("x", model="b")


async def test_a_cancelled_wait_cancels_the_request(lab):
    waiting = asyncio.ensure_future(lab.generate("slowly " + "on " * 500, model="w"))
    while not (await lab.status())["in_flight"]:
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(50):
        while (report := await lab.status())["in_flight"]:
            await asyncio.sleep(0.01)
    assert report["total_cancelled"] == 1


async def test_tables_and_their_actions(lab):
    assert "await lab.models" in repr(lab.models)
    assert {"w", "b"} <= set(await lab.models)
    backends = await lab.backends
    await backends["words"].drain()
    assert not backends["words"]["enabled"]
    assert (await (await lab.backends)["words"].enable())["enabled"]
    with pytest.raises(BadRequest, match="words"):
        backends["wrods"]
    assert (await lab.embed(["a", "bc"])).shape == (2, 2)
    assert (await lab.embed("abc")).shape == (2,)
    assert (await lab.hardware())["cores"] >= 1


async def test_serves_a_function(lab):
    def shout(inputs):
        yield inputs[-1]["content"].upper()

    served = await lab.serve(model="shout")(shout)
    assert [item.model for item in lab.served] == ["shout"]
    assert (await lab.generate("hey", model="shout")).text == "HEY"
    await asyncio.to_thread(served.stop)
    assert lab.served == []


async def test_closing_ends_everything(service):
    lab = await AsyncLab(InProcessTransport(service)).open()
    answer = await lab.generate("slowly " + "on " * 500, model="w", wait=False)
    await lab.aclose()
    await lab.aclose()
    assert (answer.state, service.ready) == ("stopped", False)
    with pytest.raises(RuntimeError, match="closed"):
        await lab.generate("x", model="w")
    assert "closed" in repr(lab)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_one_that_is_left_within_a_scope_that_has_ended_is_closed_all_the_same(service):
    lab = await AsyncLab(InProcessTransport(service)).open()
    with move_on_after(0.2):
        async with lab:
            answer = await lab.generate("slowly " + "on " * 500, model="w", wait=False)
            await asyncio.Event().wait()
    await lab.aclose()
    assert answer.state == "stopped"
    assert service.get_backend_manager().closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_one_that_is_left_while_it_opens_leaves_nothing_behind(service, monkeypatch):
    begun = asyncio.Event()

    async def look():
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(service, "_discover_apis", look)
    opening = asyncio.create_task(AsyncLab(InProcessTransport(service)).open())
    await begun.wait()
    assert service.history._task is not None
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert service.get_backend_manager().closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_still_waits_for_a_start_hears_that_it_was_closed(service, monkeypatch):
    monkeypatch.setattr(service, "_discover_apis", asyncio.Event().wait)
    lab = AsyncLab(InProcessTransport(service))
    asked_for = asyncio.create_task(lab.status())
    while service.history._task is None:
        await asyncio.sleep(0)
    await lab.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await asked_for
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("where", ["local", "server"])
async def test_a_closed_one_opens_nothing_again(where, service, request):
    if where == "local":
        transport = InProcessTransport(service)
    else:
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    lab = await AsyncLab(transport).open()
    await lab.aclose()
    for question in (lab.status, lab.explain, lambda: lab.embed("x")):
        with pytest.raises(RuntimeError, match="closed"):
            await question()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_it_is_found_as_a_lab_is(server, monkeypatch):
    monkeypatch.setenv("UIA_LAB_URL", server.url)
    monkeypatch.setenv("UIA_LAB_TOKEN", server.key)
    async with await uia_lab.connect_async() as lab:
        assert lab.where == server.url
        assert (await lab.keys) is not None
    with pytest.raises(NotConnected, match="nobody answers"):
        await uia_lab.connect_async("http://127.0.0.1:1/")


async def test_a_question_has_a_deadline():
    class Slow:
        where = "the moon"

        @within(0.01)
        async def answer(self):
            await asyncio.sleep(3600)

        @within(3600)
        async def other(self):
            raise TimeoutError("its own")

    with pytest.raises(DeadlineExceeded, match=r"the moon within 0\.01 s"):
        await Slow().answer()
    with pytest.raises(TimeoutError, match="its own"):
        await Slow().other()
