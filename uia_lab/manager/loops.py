"""One loop for the manager's state: everything else hops there."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

HOP_TIMEOUT_S = 10.0


class LoopBound:
    """Belongs to the loop of its first asynchronous call, and to the next one when that has ended."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.RLock()

    @property
    def alive(self) -> asyncio.AbstractEventLoop | None:
        """The loop, while it runs."""
        loop = self._loop
        return loop if loop is not None and loop.is_running() else None

    @property
    def is_here(self) -> bool:
        """Whether the running loop is the one it belongs to."""
        return self._loop is asyncio.get_running_loop()

    def bind(self, rebound: Callable[[], None]) -> asyncio.AbstractEventLoop:
        """The loop it belongs to, the running one if it had none that lives.

        Args:
            rebound: Called when an earlier loop has ended, whose tasks and events are of no use any more.
        """
        here = asyncio.get_running_loop()
        with self._lock:
            if self._loop is None or self._loop.is_closed():
                if self._loop is not None:
                    rebound()
                self._loop = here
            return self._loop

    def call(self, function: Callable[[], T]) -> T:
        """Runs a synchronous step where the state may be touched, from any thread.

        Raises:
            TimeoutError: The loop did not get to it within HOP_TIMEOUT_S seconds.
        """
        loop = self.alive
        if loop is None:
            with self._lock:
                return function()
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if loop is here:
            return function()

        async def step() -> T:
            return function()

        future = asyncio.run_coroutine_threadsafe(step(), loop)
        try:
            return future.result(HOP_TIMEOUT_S)
        finally:
            # What was given up must not happen later all the same.
            future.cancel()

    async def carry(self, step: Callable[[], Awaitable[T]]) -> T:
        """Awaits a step on the loop, from whichever loop the caller runs on.

        The awaitable is made there too, so that the loop's hooks close a dropped generator.
        """
        loop = self.alive
        if loop is None or loop is asyncio.get_running_loop():
            return await step()

        async def carried() -> T:
            return await step()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(carried(), loop))
