"""An event loop in a thread of its own, which synchronous code asks."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from uia_lab.domain.errors import InferenceError

T = TypeVar("T")

# Long enough for a cancellation to arrive, short enough to feel like an interrupt.
INTERRUPT_S = 2.0


class LoopThread:
    """It begins to run when it is made, and ends with :meth:`stop`.

    Args:
        name: Name of the thread.

    Attributes:
        portal: The way into the loop.
        ident: Id of the thread.
    """

    def __init__(self, name: str) -> None:
        self._threads = start_blocking_portal(name=name)
        self.portal: BlockingPortal = self._threads.__enter__()
        self.ident = self.portal.call(threading.get_ident)

    def ask(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Runs a coroutine function on the loop and waits for what it returns.

        An interrupt (Ctrl-C, the kernel's stop button) cancels it.

        Raises:
            RuntimeError: The caller is on the loop itself, which cannot wait for itself.
        """
        self.refuse_own()
        ended = threading.Event()

        async def run() -> T:
            try:
                return await function(*args, **kwargs)
            finally:
                ended.set()

        future = self.portal.start_task_soon(run)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(INTERRUPT_S)
            raise
        except CancelledError:
            raise RuntimeError("the Lab was closed meanwhile") from None
        except InferenceError as error:
            # Without the trail through this thread, which tells a reader nothing.
            raise error.with_traceback(None) from error.__cause__
        finally:
            future.cancel()

    def refuse_own(self) -> None:
        """Refuses to wait on the loop's own thread."""
        if threading.get_ident() == self.ident:
            raise RuntimeError(
                "an async function that is served in this process cannot wait for its own Lab; make it a "
                "plain function, which gets a thread, or ask with wait=False"
            )

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ends it; a second call does nothing.

        Args:
            last: Runs before the loop goes.
        """

        async def end() -> None:
            await last()
            # One turn of the loop lets closed sockets report their end before the loop itself goes.
            await asyncio.sleep(0)

        with contextlib.suppress(Exception):
            self.portal.call(end)
        with contextlib.suppress(Exception):
            self.portal.call(self.portal.stop, True)
        self._threads.__exit__(None, None, None)
