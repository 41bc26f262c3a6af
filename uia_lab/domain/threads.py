"""Synchronous functions in threads of their own, which never keep the process from ending."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from uia_lab.domain.errors import QueueFull

_END = object()


class Threads:
    """Runs functions and generators, each in a daemon thread.

    A thread cannot be interrupted: one that a caller has left goes on until the function returns or the
    generator yields, and counts as busy until then.

    Args:
        most: Threads at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._busy = 0
        self._lock = threading.Lock()

    async def call(self, function: Callable[[], Any]) -> AsyncGenerator[tuple[bool, Any], None]:
        """Pairs (is the return value, value); a generator makes its next step when it is asked for.

        Raises:
            QueueFull: Every thread is busy with calls that nobody waits for any more.
            RuntimeError: The function let a StopIteration out, which would otherwise look like an end.
        """
        with self._lock:
            if self._busy >= self.most:
                raise QueueFull(f"all {self.most} threads of the function are busy", retry_after=1.0)
            self._busy += 1
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[tuple[bool, Any, BaseException | None]] = asyncio.Queue()
        wanted = threading.Semaphore(0)
        left = threading.Event()

        def tell(*answer: Any) -> None:
            with contextlib.suppress(RuntimeError):
                # RuntimeError: the loop has closed, and with it whoever asked.
                loop.call_soon_threadsafe(answers.put_nowait, answer)

        def work() -> None:
            try:
                _steps(function, wanted, left, tell)
            except StopIteration:
                tell(True, _END, RuntimeError("the function raised StopIteration"))
            except BaseException as error:  # noqa: BLE001 - handed over to whoever asked
                tell(True, _END, error)
            finally:
                with self._lock:
                    self._busy -= 1

        threading.Thread(target=work, name="uia-function", daemon=True).start()
        try:
            while True:
                wanted.release()
                final, value, error = await answers.get()
                if error is not None:
                    raise error
                if value is not _END:
                    yield final, value
                if final:
                    return
        finally:
            left.set()
            wanted.release()


def _steps(
    function: Callable[[], Any],
    wanted: threading.Semaphore,
    left: threading.Event,
    tell: Callable[[bool, Any, BaseException | None], None],
) -> None:
    wanted.acquire()
    value = function()
    if not inspect.isgenerator(value):
        tell(True, value, None)
        return
    try:
        for piece in value:
            tell(False, piece, None)
            wanted.acquire()
            if left.is_set():
                return
        tell(True, _END, None)
    finally:
        value.close()
