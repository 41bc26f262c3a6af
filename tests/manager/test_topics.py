"""Live topics: a snapshot first, then the newest state."""

import asyncio
from contextlib import aclosing

import pytest

from uia_lab.domain.errors import BadRequest


async def test_a_snapshot_then_changes_and_nothing_left(manager, scripted):
    manager.register_backend("a", "gpu", "A", scripted("x"))
    async with aclosing(manager.subscribe("status")) as states, asyncio.timeout(10):
        assert (await anext(states))["total_requests"] == 0
        await manager.infer("generation", inputs="x")
        async for state in states:
            if state["total_successful"] == 1:
                break
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "uia-topics"]


async def test_a_slow_reader_gets_the_newest(manager, scripted):
    manager.register_backend("a", "gpu", "A", scripted("x"))
    async with aclosing(manager.subscribe("status")) as states, asyncio.timeout(10):
        await anext(states)
        for _ in range(30):
            await manager.infer("generation", inputs="x")
        seen = [await anext(states)]
        while seen[-1]["total_successful"] < 30:
            seen.append(await anext(states))
    assert len(seen) <= 5


async def test_every_topic_has_a_state(manager, scripted):
    release = asyncio.Event()
    backend = scripted("x", release)
    manager.register_backend("a", "gpu", "A", backend, max_concurrency=1)
    tasks = [asyncio.create_task(manager.infer("generation", inputs="x")) for _ in range(2)]
    await backend.reached.wait()
    states = {}
    for topic in ("inference", "backend", "queue"):
        async with aclosing(manager.subscribe(topic)) as updates:
            states[topic] = await anext(updates)
    assert states["inference"]["in_flight"] == 2
    assert states["inference"]["running"][0]["backend"] == "a"
    assert states["queue"]["waiting"] == 1
    assert states["backend"]["backends"][0]["id"] == "a"
    release.set()
    await asyncio.gather(*tasks)


async def test_an_unknown_topic_is_refused(manager):
    with pytest.raises(BadRequest, match="Did you mean 'status'"):
        await anext(manager.subscribe("statuss"))
