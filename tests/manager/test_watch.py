"""Waits of many requests under one timer."""

import asyncio
import math

import pytest

from uia_lab.domain.errors import BackendFailed, BackendTimeout, Cancelled, DeadlineExceeded
from uia_lab.manager.watch import Alarm, Watch


@pytest.fixture
async def alarm():
    made = Alarm()
    yield made
    made.close()
    assert made.watches == set()


@pytest.fixture
async def watch(alarm):
    made = Watch(alarm)
    yield made
    made.close()


def late():
    return DeadlineExceeded("late")


async def test_a_wait_that_is_over_has_its_error_and_the_next_one_is_fresh(watch):
    with pytest.raises(DeadlineExceeded), watch.within(0.01, late):
        await asyncio.sleep(60)
    assert asyncio.current_task().cancelling() == 0
    with watch.within(60, late):
        await asyncio.sleep(0)


async def test_one_timer_serves_all_and_rings_for_the_earliest(alarm):
    ended = []

    async def wait(seconds):
        watch = Watch(alarm)
        try:
            with watch.within(seconds, late):
                await asyncio.sleep(60)
        except DeadlineExceeded:
            ended.append(seconds)
        finally:
            watch.close()

    await asyncio.wait_for(asyncio.gather(wait(0.2), wait(0.02), wait(0.1)), 20)
    assert ended == [0.02, 0.1, 0.2]
    assert alarm.at == math.inf, "nobody waits: nothing is set"


async def test_a_wait_that_ends_in_time_leaves_the_timer_alone(alarm, watch):
    with watch.within(5, late):
        await asyncio.sleep(0)
    at = alarm.at
    for _ in range(3):
        with watch.within(5, late):
            await asyncio.sleep(0)
    assert alarm.at == at
    with watch.within(1, late):
        assert alarm.at < at


async def test_more_time_may_be_given(watch):
    asked = []

    def once_more():
        asked.append(1)
        return 0.01 if len(asked) < 3 else DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded), watch.within(0.01, once_more):
        await asyncio.sleep(60)
    assert len(asked) == 3


async def test_cancel_ends_the_wait_and_all_that_come(watch):
    asyncio.get_running_loop().call_soon(watch.cancel)
    with pytest.raises(Cancelled), watch.within(60, late):
        await asyncio.sleep(60)
    with pytest.raises(Cancelled), watch.within(60, late):
        raise AssertionError
    assert asyncio.current_task().cancelling() == 0


async def test_the_callers_own_cancel_stays_one(watch):
    async def wait():
        with watch.within(60, late):
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_the_backend_raises_itself(watch):
    with pytest.raises(BackendTimeout, match="its own"), watch.within(60, late):
        raise TimeoutError("its own")
    with pytest.raises(BackendFailed, match="stopped"), watch.within(60, late):
        raise asyncio.CancelledError
