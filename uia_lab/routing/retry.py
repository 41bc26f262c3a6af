"""How much of the traffic may be retries, so that a fault is not multiplied into a storm."""

import random

RATIO = 0.2
PER_SECOND = 2.0
MOST = 10.0
BASE_S = 0.2
CAP_S = 5.0


class RetryBudget:
    """A bucket of retries: RATIO of each request and PER_SECOND of each second go in, MOST fit (Finagle)."""

    def __init__(self) -> None:
        self._balance = MOST
        self._at: float | None = None

    def requested(self, now: float) -> None:
        """A request began."""
        self._refill(now)
        self._balance = min(MOST, self._balance + RATIO)

    def take(self, now: float) -> bool:
        """Takes one retry out; False if there is none left."""
        self._refill(now)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._balance = min(MOST, self._balance + max(0.0, now - self._at) * PER_SECOND)
        self._at = now


def pause(number: int, rng: random.Random) -> float:
    """Seconds to wait before an attempt.

    The second attempt goes to another backend and need not wait; from the third on the fault may be
    common to them: full jitter over BASE_S doubled each time, CAP_S at most.

    Args:
        number: 1 for the first attempt.
        rng: Source of random numbers.
    """
    if number <= 2:
        return 0.0
    return rng.random() * min(CAP_S, BASE_S * 2.0 ** (number - 3))
