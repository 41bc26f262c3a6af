"""Many changes, few messages."""

import asyncio
import time
from collections.abc import Callable


class Coalescer:
    """Calls a function at most once an interval, and always once after the last change.

    The first change goes out at once; later ones wait for their turn, on the event loop of whoever changes
    something. Where that one stands still (a cell runs), the next change after the turn goes out by itself.

    Args:
        push: Sends the present state.
        interval: Seconds between two calls; asked anew each time.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        push: Callable[[], None],
        interval: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._push = push
        self._interval = interval
        self._clock = clock
        self._last = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def touch(self) -> None:
        """Something has changed."""
        now = self._clock()
        if self._timer is not None and now < self._due:
            return
        wait = self._last + self._interval() - now
        if wait <= 0:
            self.flush()
        elif self._timer is None:
            self._due = now + wait
            self._timer = asyncio.get_running_loop().call_later(wait, self.flush)

    def flush(self) -> None:
        """Sends now; a waiting change goes out with it."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._last = self._clock()
        self._push()
