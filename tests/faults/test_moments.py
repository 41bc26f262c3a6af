"""Two things in one turn of the loop: the moments in which a lease could get lost."""

import asyncio

import pytest

from tests.faults.conftest import Told, make_manager, read, set_patience, until
from uia_lab.domain.errors import BackendFailed, Cancelled, DeadlineExceeded, RateLimited
from uia_lab.domain.requests import InferenceRequest, RoutingHints

TEXT = "text-generation"


@pytest.fixture
async def crowded(manager):
    """One slot, taken by a stream that has begun, and one request that waits for it."""
    backend = Told("x ", "y")
    manager.register_backend("a", "gpu", "A", backend, max_concurrency=1)
    holder = manager.stream(TEXT, "m", "x")
    await read(holder, 1)
    manager.holder = holder
    manager.backend = backend
    return manager


async def wait_in_line(manager, **hints):
    stream = manager.stream(TEXT, "m", "x", **hints)
    task = asyncio.create_task(stream.result())
    await until(lambda: len(manager.router.queue) == 1)
    return stream, task


async def serves_again(manager):
    (info,) = manager.list_backends()
    assert info.metrics.active_connections == 0, "a lease that nobody has"
    assert (await manager.infer(TEXT, "m", "x", deadline_s=2.0)).text == "x y"


@pytest.mark.parametrize("turns", range(4))
async def test_leaving_the_line_as_the_slot_gets_free(crowded, turns):
    _, task = await wait_in_line(crowded)
    task.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    await crowded.holder.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task
    await serves_again(crowded)


@pytest.mark.parametrize("turns", range(4))
async def test_a_slot_gets_free_as_one_leaves_the_line(crowded, turns):
    _, task = await wait_in_line(crowded)
    await crowded.holder.aclose()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await serves_again(crowded)


@pytest.mark.parametrize("turns", range(4))
async def test_cancelled_by_id_in_line_as_the_slot_gets_free(crowded, turns):
    stream, task = await wait_in_line(crowded)
    assert crowded.cancel(stream.request_id)
    for _ in range(turns):
        await asyncio.sleep(0)
    await crowded.holder.aclose()
    with pytest.raises(Cancelled):
        await task
    await serves_again(crowded)


@pytest.mark.parametrize("turns", range(4))
async def test_the_deadline_in_line_as_the_slot_gets_free(crowded, turns):
    """The deadline's timer and the free slot in one turn, in either order."""
    _, task = await wait_in_line(crowded, deadline_s=60.0)
    (running,) = [item for item in crowded.running.values() if item.backend_id is None]
    (watch,) = running._watches
    watch.due = 0.0
    asyncio.get_running_loop().call_soon(watch.look, 1.0)
    for _ in range(turns):
        await asyncio.sleep(0)
    await crowded.holder.aclose()
    with pytest.raises(DeadlineExceeded):
        await task
    await serves_again(crowded)


@pytest.mark.parametrize("turns", range(4))
async def test_the_next_in_line_is_not_forgotten(crowded, turns):
    """The slot of one who leaves in that moment goes to the next, not to nobody."""
    _, first = await wait_in_line(crowded)
    second = asyncio.create_task(crowded.infer(TEXT, "m", "x", deadline_s=2.0))
    await until(lambda: len(crowded.router.queue) == 2)
    first.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    await crowded.holder.aclose()
    assert (await second).text == "x y"
    with pytest.raises(asyncio.CancelledError):
        await first
    await serves_again(crowded)


async def test_unregistered_while_it_answers_and_registered_again(crowded):
    """A lease belongs to the backend it was taken at, not to its name."""
    assert crowded.unregister_backend("a")
    crowded.register_backend("a", "gpu", "A", Told("new"), max_concurrency=1)
    await crowded.holder.aclose()
    (info,) = crowded.list_backends()
    assert info.metrics.active_connections == 0
    assert (await crowded.infer(TEXT, "m", "x")).text == "new"


@pytest.mark.parametrize("turns", range(4))
async def test_cancelling_twice_is_cancelling_once(manager, turns):
    """The second time may come while the first is being carried out."""
    manager.register_backend("a", "gpu", "A", Told("x", asyncio.Event()))
    stream = manager.stream(TEXT, "m", "x")
    await read(stream, 1)
    task = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    assert manager.cancel(stream.request_id)
    for _ in range(turns):
        await asyncio.sleep(0)
    manager.cancel(stream.request_id)
    with pytest.raises(Cancelled):
        await task
    assert manager.totals.cancelled == 1


@pytest.mark.parametrize("turns", range(4))
async def test_closing_while_a_request_is_being_cancelled(turns):
    """The end of the manager is not stopped by a request that is ending."""
    manager = make_manager()
    manager.register_backend("a", "gpu", "A", Told("x", asyncio.Event()))
    stream = manager.stream(TEXT, "m", "x")
    await read(stream, 1)
    task = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    manager.cancel(stream.request_id)
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await manager.aclose()
    finally:
        with pytest.raises(Cancelled):
            await task
        await manager.aclose()
    assert manager.totals.cancelled == 1


async def test_who_waits_is_served_before_who_comes(manager):
    """A pause that ends as a new request comes frees the slot for the one in line."""
    manager.configure({"max_attempts": 1})
    backend = Told(RateLimited("slow down", retry_after=5.0))
    manager.register_backend("a", "gpu", "A", backend, max_concurrency=1)
    with pytest.raises(RateLimited):
        await manager.infer(TEXT, "m", "x")
    backend.script = ("x",)
    order = []

    async def one(name):
        await manager.infer(TEXT, "m", name)
        order.append(name)

    first = asyncio.create_task(one("first"))
    await until(lambda: len(manager.router.queue) == 1)
    manager.clock.skipped += 6.0
    await asyncio.gather(first, one("second"))
    assert order == ["first", "second"]


async def test_a_second_attempt_that_failed_is_not_asked_again(manager, monkeypatch):
    """Hedged: the first is silent, the one beside it breaks; the next attempt goes to a third."""
    set_patience(monkeypatch, 0.1)
    silent, broken, sound = Told(asyncio.Event()), Told(BackendFailed("boom")), Told("x")
    for name, backend, weight in (("a", silent, 100.0), ("b", broken, 10.0), ("c", sound, 1.0)):
        manager.register_backend(name, "gpu", name, backend, weight=weight)
    result = await manager.infer(TEXT, "m", "x", hedge_after_s=0.01)
    assert (result.text, result.backend_id) == ("x", "c")
    assert (silent.asked, broken.asked, sound.asked) == (1, 1, 1)


@pytest.mark.parametrize("how", ["task", "id"])
async def test_leaving_a_race_frees_both(manager, how):
    runners = [Told(asyncio.Event()), Told(asyncio.Event())]
    for number, backend in enumerate(runners):
        manager.register_backend(f"b{number}", "gpu", "B", backend, max_concurrency=1)
    stream = manager.open(InferenceRequest(TEXT, "m", "x", routing=RoutingHints(hedge_after_s=0.01)))
    task = asyncio.create_task(stream.result())
    await until(lambda: all(backend.under_way for backend in runners))
    if how == "task":
        task.cancel()
    else:
        manager.cancel(stream.request_id)
    with pytest.raises((Cancelled, asyncio.CancelledError)):
        await task
    assert [backend.under_way for backend in runners] == [0, 0]
    assert [info.metrics.cancelled_requests for info in manager.list_backends()] == [1, 1]
