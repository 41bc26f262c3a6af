"""Deadlines of what requests wait for, kept by one timer."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from uia_lab.domain.errors import BackendFailed, BackendTimeout, Cancelled, InferenceError


class Alarm:
    """The one timer of all watches of a loop; it rings at the earliest of their moments, or before.

    A timeout of its own for each chunk of each stream would cost more than passing the chunk on. A wait that
    ends in time leaves the timer alone, so it rings early now and then, and is set anew.
    """

    def __init__(self) -> None:
        self.watches: set[Watch] = set()
        self.at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Rings at a moment on the loop's clock."""
        self.close()
        self.at = at
        if at < math.inf:
            self._timer = asyncio.get_running_loop().call_at(at, self._ring)

    def close(self) -> None:
        """Puts the timer away."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.at = math.inf

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        for watch in list(self.watches):
            watch.look(now)
        self.set(min((watch.due for watch in self.watches), default=math.inf))


class Watch:
    """Bounds one wait after another of one request; each is a ``with`` block around what is awaited.

    Args:
        alarm: The timer of the loop.
        cancelled: Whether the request was ended already.

    Attributes:
        due: When the wait under way is over, on the loop's clock; infinite while there is none.
        cancelled: Whether somebody ended the request; every wait then raises Cancelled.
    """

    def __init__(self, alarm: Alarm, *, cancelled: bool = False) -> None:
        self.due = math.inf
        self.cancelled = cancelled
        self._alarm = alarm
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._seconds = 0.0
        self._late: Callable[[], InferenceError | float]
        self._error: InferenceError | None = None
        self._rung = False
        alarm.watches.add(self)

    def within(self, seconds: float, late: Callable[[], InferenceError | float]) -> Self:
        """Sets the next wait.

        Args:
            seconds: How long it may take.
            late: Asked when that is over: for the error, or for how many seconds more.
        """
        self._seconds = seconds
        self._late = late
        return self

    def cancel(self) -> None:
        """Ends the wait that is under way, and all that come. On the loop only."""
        self.cancelled = True
        self._ring()

    def close(self) -> None:
        """Nothing is waited for any more."""
        self._alarm.watches.discard(self)

    def look(self, now: float) -> None:
        """Ends the wait under way, if its time is over."""
        if now < self.due or self._task is None:
            return
        answer = self._late()
        if isinstance(answer, InferenceError):
            self._error = answer
            self._ring()
        else:
            self.due = now + answer

    def __enter__(self) -> None:
        if self.cancelled:
            raise Cancelled("the request was cancelled")
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling, self._rung = task, task.cancelling(), False
        self.due = self._loop.time() + self._seconds
        if self.due < self._alarm.at:
            self._alarm.set(self.due)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task, self.due = self._task, None, math.inf
        assert task is not None
        if self._rung and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error or Cancelled("the request was cancelled") from None
        if kind is None:
            return
        if issubclass(kind, asyncio.CancelledError) and not task.cancelling():
            # Not the caller: the backend was stopped under its request.
            raise BackendFailed("the backend was stopped while it served") from None
        if issubclass(kind, TimeoutError):
            # The backend's own, not our deadline.
            raise BackendTimeout(f"the backend timed out: {error}") from error

    def _ring(self) -> None:
        if self._task is not None and not self._rung:
            self._rung = True
            self.due = math.inf
            self._task.cancel()
