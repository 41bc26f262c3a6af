"""A second backend is asked when the first is slow, and only one answer counts."""

import asyncio

import pytest

from uia_lab.domain.errors import BackendFailed, Cancelled


@pytest.fixture
def pair(manager, scripted):
    """A first backend that waits for ever and a second one that answers."""

    def register(first, second):
        manager.set_strategy("round_robin")
        manager.register_backend("first", "gpu", "First", first, weight=100.0)
        manager.register_backend("second", "gpu", "Second", second)

    return register


async def test_the_quicker_one_wins_and_the_other_is_cancelled(manager, scripted, pair):
    slow, quick = scripted("slow", asyncio.Event()), scripted("quick")
    pair(slow, quick)
    result = await manager.infer("generation", inputs="x", hedge_after_s=0.01)
    assert (result.text, result.backend_id) == ("quick", "second")
    assert slow.closed == 1
    first, second = (manager.get_backend(name).metrics for name in ("first", "second"))
    assert (first.cancelled_requests, second.successful_requests) == (1, 1)
    report = manager.get_backend_status_report()
    assert (report["total_requests"], report["total_successful"], report["in_flight"]) == (1, 1, 0)


async def test_a_quick_first_one_is_left_alone(manager, scripted, pair):
    second = scripted("second")
    pair(scripted("first"), second)
    assert (await manager.infer("generation", inputs="x", hedge_after_s=10.0)).text == "first"
    assert second.requests == []


async def test_when_both_fail_the_journey_goes_on(manager, scripted, pair):
    pair(scripted(BackendFailed("one")), scripted("saved"))
    result = await manager.infer("generation", inputs="x", hedge_after_s=10.0)
    assert result.text == "saved"


async def test_cancelling_ends_both(manager, scripted, pair):
    backends = scripted("a", asyncio.Event()), scripted("b", asyncio.Event())
    pair(*backends)
    task = asyncio.create_task(manager.infer("generation", inputs="x", hedge_after_s=0.001))
    async with asyncio.timeout(10):
        await asyncio.gather(*(backend.reached.wait() for backend in backends))
    (request_id,) = manager.running
    manager.cancel(request_id)
    with pytest.raises(Cancelled):
        await task
    assert [backend.closed for backend in backends] == [1, 1]


@pytest.mark.parametrize("fields", [{"side_effects": True}, {"external": True}])
async def test_what_costs_or_does_something_is_asked_once(manager, scripted, fields):
    manager.configure({"external_policy": "any"})
    release = asyncio.Event()
    backends = [scripted("x", release, **fields) for _ in range(2)]
    for number, backend in enumerate(backends):
        manager.register_backend(f"b{number}", "api", "B", backend)
    task = asyncio.create_task(manager.infer("generation", inputs="x", hedge_after_s=0.0))
    async with asyncio.timeout(10):
        await asyncio.wait(
            [asyncio.create_task(b.reached.wait()) for b in backends], return_when="FIRST_COMPLETED"
        )
    release.set()
    await task
    assert sum(len(backend.requests) for backend in backends) == 1
