"""The bridge between the loop and the trio thread: results, errors, cancellation, the end of either side."""

import asyncio
import contextlib
import threading
import warnings

import pytest

from tests.p2p.conftest import until
from uia_lab.domain.errors import BackendFailed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trio

    from uia_lab.p2p.calls import Inbox
    from uia_lab.p2p.thread import TrioThread


@pytest.fixture
async def thread():
    made = TrioThread(asyncio.get_running_loop(), "bridge-test")
    await made.start(forever)
    yield made
    await made.stop()
    assert "bridge-test" not in {item.name for item in threading.enumerate()}


async def forever(ready):
    ready()
    await trio.sleep_forever()


async def test_results_and_errors_come_over(thread):
    async def double(value):
        await trio.sleep(0)
        return value * 2, threading.current_thread().name

    assert await thread.call(double, 21) == (42, "bridge-test")

    async def fail():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        await thread.call(fail)


async def test_a_cancelled_caller_cancels_the_call_there(thread):
    cancelled = threading.Event()

    async def wait():
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    task = asyncio.create_task(thread.call(wait))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(cancelled.is_set)


async def test_many_calls_at_once(thread):
    async def echo(value):
        await trio.sleep(0)
        return value

    assert await asyncio.gather(*(thread.call(echo, number) for number in range(500))) == list(range(500))


async def test_the_other_way_round(thread):
    async def on_the_loop(value):
        await asyncio.sleep(0)
        if value < 0:
            raise ValueError("negative")
        return value, threading.current_thread() is threading.main_thread()

    async def ask(value):
        return await thread.ask(on_the_loop, value)

    assert await thread.call(ask, 3) == (3, True)
    with pytest.raises(ValueError, match="negative"):
        await thread.call(ask, -1)


async def test_a_question_to_the_loop_is_cancelled_with_whoever_asked(thread):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def long():
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def ask():
        with trio.move_on_after(30) as scope:
            scopes.append(scope)
            await thread.ask(long)

    scopes = []
    task = asyncio.create_task(thread.call(ask))
    await begun.wait()
    thread.post(scopes[0].cancel)
    await task
    async with asyncio.timeout(20):
        await cancelled.wait()


async def test_whoever_waits_when_it_ends_is_told(thread):
    async def wait():
        await trio.sleep_forever()

    tasks = [asyncio.create_task(thread.call(wait)) for _ in range(5)]
    await asyncio.sleep(0.01)
    await thread.stop()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, BackendFailed)
        assert "stopped" in outcome.message
    with pytest.raises(BackendFailed, match="stopped"):
        await thread.call(wait)
    assert thread.post(lambda: None) is False
    assert not thread.alive
    await thread.stop()


async def test_one_that_crashes_tells_everybody():
    thread = TrioThread(asyncio.get_running_loop(), "bridge-test")
    crash = []

    async def main(ready):
        event = trio.Event()
        crash.append(event.set)
        ready()
        await event.wait()
        raise ZeroDivisionError("on purpose")

    await thread.start(main)
    task = asyncio.create_task(thread.call(trio.sleep_forever))
    await asyncio.sleep(0.01)
    thread.post(crash[0])
    with pytest.raises(BackendFailed):
        await task
    await until(lambda: not thread.alive)
    assert "on purpose" in repr(thread.error)
    await thread.stop()


async def test_one_that_cannot_start_says_why():
    thread = TrioThread(asyncio.get_running_loop(), "bridge-test")

    async def main(ready):
        raise ZeroDivisionError("at once")

    with pytest.raises(ZeroDivisionError, match="at once"):
        await thread.start(main)
    await thread.stop()


def test_a_loop_that_closed_is_no_error_for_the_thread():
    """A notebook may end its loop without stopping anything."""
    threads = []

    async def main():
        thread = TrioThread(asyncio.get_running_loop(), "bridge-test")
        await thread.start(forever)
        threads.append(thread)

    asyncio.run(main())
    (thread,) = threads
    thread.tell(lambda: None)
    with contextlib.suppress(RuntimeError):
        thread.post(thread._cancel)
    thread._thread.join(20)
    assert not thread._thread.is_alive()


async def test_a_start_that_is_cancelled_at_once_leaves_no_thread():
    for turns in range(3):
        thread = TrioThread(asyncio.get_running_loop(), "bridge-test")
        starting = asyncio.create_task(thread.start(forever))
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not thread.alive
        assert "bridge-test" not in {item.name for item in threading.enumerate()}


async def test_what_comes_just_before_the_end_is_not_lost():
    """The other thread may put an item and the end in, between any two looks of the reader."""
    inbox = Inbox(asyncio.get_running_loop().call_soon_threadsafe)

    class Looked(type(inbox._items)):
        """Empty at the first look; a moment later the item and the end are in."""

        def __len__(self):
            found = super().__len__()
            if not found and inbox._error is None:
                inbox._items = later
                inbox.put("the end frame")
                inbox.fail(BackendFailed("the stream has ended"))
            return found

    later = inbox._items
    inbox._items = Looked()
    async with asyncio.timeout(20):
        assert await inbox.get() == "the end frame"
        with pytest.raises(BackendFailed, match="has ended"):
            await inbox.get()
