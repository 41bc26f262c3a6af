"""Every way a caller leaves ends the work outside, frees the slot and is counted once."""

import asyncio
import gc

import pytest

from uia_lab.domain.errors import Cancelled, QueueFull
from uia_lab.domain.events import Chunk


@pytest.fixture
def held(manager, scripted):
    """A backend for one request at a time that stops after its first word."""
    release = asyncio.Event()
    backend = scripted("Once", release, " upon")
    backend.release = release
    manager.register_backend("a", "gpu", "A", backend, max_concurrency=1)
    return backend


async def first_chunk(stream):
    async for event in stream:
        if isinstance(event, Chunk):
            return event
    raise AssertionError("no chunk came")


def counts(manager):
    report = manager.get_backend_status_report()
    return report["in_flight"], report["total_cancelled"], manager.get_backend("a").metrics.active_connections


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_closing(manager, held):
    stream = manager.stream("generation", inputs="x")
    await first_chunk(stream)
    assert counts(manager) == (1, 0, 1)
    await stream.aclose()
    assert counts(manager) == (0, 1, 0)
    assert held.closed == 1


async def test_dropping_without_a_close(manager, held):
    stream = manager.stream("generation", inputs="x")
    await first_chunk(stream)
    del stream
    gc.collect()
    await until(lambda: counts(manager) == (0, 1, 0))
    assert held.closed == 1


async def test_cancelling_the_task(manager, held):
    task = asyncio.create_task(manager.infer("generation", inputs="x"))
    await held.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts(manager) == (0, 1, 0)
    assert held.closed == 1


async def test_cancelling_by_id(manager, held):
    stream = manager.stream("generation", inputs="x")
    task = asyncio.create_task(stream.result())
    await held.reached.wait()
    assert manager.running[stream.request_id].request.principal == "local"
    assert manager.cancel(stream.request_id)
    with pytest.raises(Cancelled):
        await task
    assert counts(manager) == (0, 1, 0)
    assert held.closed == 1
    assert not manager.cancel(stream.request_id)


async def test_one_who_waits_leaves_the_queue(manager, held):
    running = asyncio.create_task(manager.infer("generation", inputs="x"))
    await held.reached.wait()
    waiting = asyncio.create_task(manager.infer("generation", inputs="y"))
    await until(lambda: len(manager.router.queue) == 1)
    assert manager.get_backend("a").metrics.current_queue_size == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(manager.router.queue) == 0
    held.release.set()
    assert (await running).text == "Once upon"
    assert counts(manager) == (0, 1, 0)


async def test_one_who_waits_is_served_when_the_slot_is_free(manager, held):
    running = [asyncio.create_task(manager.infer("generation", inputs=str(number))) for number in range(4)]
    await held.reached.wait()
    await until(lambda: len(manager.router.queue) == 3)
    held.release.set()
    results = await asyncio.gather(*running)
    assert {result.text for result in results} == {"Once upon"}
    assert counts(manager) == (0, 0, 0)


async def test_waiting_has_an_end(manager, held):
    manager.configure({"queue_timeout": 0.1})
    running = asyncio.create_task(manager.infer("generation", inputs="x"))
    await held.reached.wait()
    with pytest.raises(QueueFull, match="for a free backend"):
        await manager.infer("generation", inputs="y")
    held.release.set()
    await running
    assert manager.get_backend_status_report()["total_rejected"] == 1


async def test_closing_the_manager_ends_what_runs(manager, held):
    task = asyncio.create_task(manager.infer("generation", inputs="x"))
    await held.reached.wait()
    await manager.aclose()
    with pytest.raises(Cancelled):
        await task
    assert (held.closed, held.stopped) == (1, 1)
