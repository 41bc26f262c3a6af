"""What an AsyncLab is made of: its transport, its loop and tasks, its beginning and its end."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio import CancelScope, move_on_after

from uia_lab.notebook.asking import QUESTION_S, Ask, directly, within
from uia_lab.notebook.generations import Generations
from uia_lab.notebook.serving import Servings
from uia_lab.notebook.transport import CLOSED, Transport

T = TypeVar("T")

CLOSE_S = 10.0


class LabCore:
    """The base of :class:`AsyncLab` and of its parts.

    Args:
        transport: Who serves.
        ask: How the actions of its tables are run; they are awaited when absent.
    """

    def __init__(self, transport: Transport, *, ask: Ask = directly) -> None:
        self._transport = transport
        self._run = ask
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._instance_id = ""
        self.generations = Generations(transport, self.spawn)
        self.servings = Servings(transport, self.spawn)

    async def open(self) -> Self:
        """Asks the service who it is.

        Raises:
            NotConnected: Nobody answers; the message says what to do.
            InferenceError: The service answers with an error, for example a wrong token.
        """
        try:
            self._instance_id = (await self._report())["instance_id"]
        except BaseException:
            with CancelScope(shield=True):
                await self.aclose()
            raise
        return self

    @property
    def where(self) -> str:
        """In words, who serves."""
        return self._transport.where

    @property
    def instance_id(self) -> str:
        """Id of the service; empty before :meth:`open`."""
        return self._instance_id

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    async def aclose(self) -> None:
        """Ends what runs and lets go of everything; a second call does nothing."""
        if self._closing is None:
            # A task of its own: whoever is cancelled meanwhile must not leave half of it behind.
            self._closing = asyncio.create_task(self._end(asyncio.current_task()), name="uia-lab-close")
        await asyncio.shield(self._closing)

    async def _end(self, caller: asyncio.Task[Any] | None) -> None:
        if self.servings.any:
            await asyncio.to_thread(self.servings.close)
        self._closed = True
        # What another thread has just handed in learns that it is too late.
        await asyncio.sleep(0)
        tasks = self._tasks - {caller}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        with move_on_after(CLOSE_S):
            await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self if self._instance_id else await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def spawn(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> "Future[T]":
        """Runs a coroutine function on the Lab's loop, from whichever thread; closing the Lab ends it."""
        if self._closed:
            raise RuntimeError(CLOSED)
        running = self._tracked(function, *args)
        try:
            return asyncio.run_coroutine_threadsafe(running, self._loop)
        except RuntimeError:
            running.close()
            raise

    async def _tracked(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        task = asyncio.current_task()
        assert task is not None
        if self._closed:
            raise asyncio.CancelledError
        self._tasks.add(task)
        try:
            return await function(*args)
        finally:
            self._tasks.discard(task)

    @within(QUESTION_S)
    async def _report(self) -> dict[str, Any]:
        return await self._transport.status()
