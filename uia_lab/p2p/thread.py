"""The trio thread and the two bridges between it and an asyncio loop."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import trio

from uia_lab.domain.errors import BackendFailed

T = TypeVar("T")
STOP_S = 10.0


class TrioThread:
    """Runs a trio main function in a thread of its own, and carries calls over.

    A crash or a blocking call in there cannot stop the loop, and neither can the other way round.

    Args:
        loop: The loop that calls come from, and that is called back.
        name: What the thread is called.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "uia-p2p") -> None:
        self._loop = loop
        self._name = name
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._open = False
        self._stopping = False
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._calls: set[asyncio.Future[Any]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def alive(self) -> bool:
        """Whether calls can be carried over."""
        return self._thread is not None and not self._ended.is_set()

    async def start(self, main: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Starts the thread; done when ``main`` has called the function it is given.

        Args:
            main: Runs in trio until it is cancelled, or ends by an error.

        Raises:
            Exception: What ``main`` ended with before it was ready.
        """
        ready: asyncio.Future[None] = self._loop.create_future()

        def is_ready() -> None:
            self.tell(_settle, ready, None, None)

        async def body() -> None:
            self._token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._stopping:
                    # It was told to before there was anything to cancel.
                    return
                self._open = True
                try:
                    await main(is_ready)
                finally:
                    self._open = False
                    nursery.cancel_scope.cancel()

        def run() -> None:
            try:
                trio.run(body, strict_exception_groups=True)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                self._error = error
            finally:
                self.tell(self._has_ended)

        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()
        ended: asyncio.Future[Any] = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                await self.stop()
            raise
        finally:
            ended.cancel()
        if not ready.done():
            ready.cancel()
            raise _first(self._error) if self._error is not None else self.stopped()

    async def stop(self) -> None:
        """Cancels ``main`` and waits until the thread has ended.

        Raises:
            TimeoutError: It did not end within STOP_S.
        """
        if self._thread is None:
            return
        # Said before it is posted: where the post comes too early, the thread reads this.
        self._stopping = True
        self.post(self._cancel)
        async with asyncio.timeout(STOP_S):
            await self._ended.wait()
        # It is over but for its last line.
        self._thread.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ended(self, seconds: float) -> None:
        """Done when the thread has ended, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    @property
    def error(self) -> BaseException | None:
        """What the thread ended with, if it was not told to."""
        return self._error

    def stopped(self) -> BackendFailed:
        """A fresh error for calls that cannot be carried over."""
        return BackendFailed("the p2p node is stopped; start it first")

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Runs an asynchronous function in trio; cancelled there when the caller is.

        Raises:
            BackendFailed: The thread has ended, or ends meanwhile.
            Exception: What the function raised.
        """
        if not self.alive:
            raise self.stopped()
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        scope = trio.CancelScope()

        async def run() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                with scope:
                    result = await function(*args)
            except Exception as caught:  # noqa: BLE001 - carried over
                error = _first(caught)
            except BaseException:
                self.tell(lambda: _settle(future, None, self.stopped()))
                raise
            self.tell(lambda: _settle(future, result, error))

        def begin() -> None:
            if self._open and self._nursery is not None:
                self._nursery.start_soon(run)
            else:
                self.tell(lambda: _settle(future, None, self.stopped()))

        if not self.post(begin):
            raise self.stopped()
        try:
            return await future
        except asyncio.CancelledError:
            self.post(scope.cancel)
            raise

    def post(self, function: Callable[..., Any], *args: Any) -> bool:
        """Calls a function in trio, soon; it must not raise. False where the thread has ended."""
        token = self._token
        if token is None:
            return False
        try:
            token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            return False
        return True

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Calls a function on the loop, soon; from any thread. Nothing happens where the loop has closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    async def ask(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """From trio: runs a coroutine function on the loop; cancelled there when the caller is.

        Raises:
            Exception: What the function raised.
        """
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        tasks: list[asyncio.Task[T]] = []

        def finished(_: asyncio.Task[T]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        def begin() -> None:
            task = self._loop.create_task(function(*args), name="uia-p2p-ask")
            tasks.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(finished)

        self.tell(begin)
        try:
            await done.wait()
        except trio.Cancelled:
            self.tell(lambda: [task.cancel() for task in tasks])
            raise
        if tasks[0].cancelled():
            raise self.stopped()
        return tasks[0].result()

    def _cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _has_ended(self) -> None:
        self._ended.set()
        for future in list(self._calls):
            _settle(future, None, self.stopped())


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _first(error: BaseException) -> BaseException:
    """The one error that a group of nurseries was wrapped around."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
