"""The manager belongs to one loop; other threads and loops reach it there."""

import asyncio
import gc
import threading

import pytest

from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.events import Chunk
from uia_lab.inference_backend_manager import BackendManager

TEXT = BackendCapabilities(supported_tasks={"text-generation"}, supports_streaming=True)


@pytest.fixture
def elsewhere():
    """A manager that lives on a loop in another thread."""
    manager = BackendManager({"enable_health_checks": False})
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def words(inputs):
        here.append(threading.get_ident())
        for word in inputs.split():
            yield word

    here = []
    manager.register_backend("a", "gpu", "A", words, TEXT)
    asyncio.run_coroutine_threadsafe(manager.probe("a"), loop).result(10)
    manager.thread, manager.seen = thread.ident, here
    yield manager
    asyncio.run_coroutine_threadsafe(manager.aclose(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def test_an_answer_is_carried_over(elsewhere):
    result = await elsewhere.infer("generation", inputs="Once upon a time")
    assert result.text == "Onceuponatime"
    assert set(elsewhere.seen) == {elsewhere.thread}


async def test_a_dropped_stream_is_closed_over_there(elsewhere):
    stream = elsewhere.stream("generation", inputs="a b c")
    async for event in stream:
        if isinstance(event, Chunk):
            break
    del stream, event
    gc.collect()
    async with asyncio.timeout(10):
        while elsewhere.get_backend_status_report()["in_flight"]:
            await asyncio.sleep(0.001)
    assert elsewhere.get_backend_status_report()["total_cancelled"] == 1


def test_synchronous_calls_hop_there(elsewhere):
    assert elsewhere.get_backend("a").status.value == "healthy"
    elsewhere.register_backend("b", "gpu", "B", lambda inputs: inputs, TEXT)
    elsewhere.set_strategy("least_loaded")
    assert elsewhere.get_backend_status_report()["strategy"] == "least_loaded"
    assert elsewhere.unregister_backend("b")


def test_a_new_loop_may_follow_an_ended_one():
    manager = BackendManager({"health_check_interval": 1})

    async def echo(inputs):
        return inputs

    manager.register_backend("a", "gpu", "A", echo, TEXT)
    for _ in range(2):
        assert asyncio.run(manager.infer("generation", inputs="x")).text == "x"


async def test_a_topic_is_followed_from_another_loop(elsewhere):
    states = elsewhere.subscribe("status")
    async with asyncio.timeout(20):
        assert (await anext(states))["total_requests"] == 0
        await asyncio.to_thread(elsewhere.set_strategy, "round_robin")
        # A state from before the change may come first; an idle loop must be woken for the newest.
        while (await anext(states))["strategy"] != "round_robin":
            pass
    await states.aclose()
