"""Time that passes by events and not by waiting, for simulations of the router."""

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any


class VirtualTime:
    """What is to happen, in order; those of one moment in the order they were asked for.

    Args:
        now: Where time begins, seconds.

    Attributes:
        now: The present, seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()

    def at(self, time: float, step: Callable[[Any], None], subject: Any) -> None:
        """Has ``step(subject)`` called when that time has come."""
        heapq.heappush(self._heap, (time, next(self._order), step, subject))

    @property
    def following(self) -> float:
        """When the next event is; infinity where none is to come."""
        return self._heap[0][0] if self._heap else math.inf

    def step(self) -> None:
        """Goes on to the next event."""
        self.now, _, step, subject = heapq.heappop(self._heap)
        step(subject)
