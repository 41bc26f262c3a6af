"""The breaker of one backend: opens on faults, lets one trial through, starts slowly when it closes."""

from collections import deque
from dataclasses import dataclass, field

CONSECUTIVE = 5
RATE = 0.5
RATE_LEAST = 10
RATE_WINDOW_S = 30.0
OPEN_S = 5.0
OPEN_MAX_S = 60.0
CLOSE_AFTER = 2
SLOW_START_S = 10.0
SLOW_START_LEAST = 0.1
WINDOW = 128


@dataclass(slots=True)
class Breaker:
    """Closed, open or half open.

    It opens on CONSECUTIVE faults in a row, or when at least RATE of RATE_LEAST or more requests within
    RATE_WINDOW_S were faults. Each opening without a calm minute before it lasts twice as long as the last.

    Attributes:
        consecutive: Faults since the last success.
        opened_until: When the open time ends; 0 while it is not open.
        half_open: Whether it tries one request at a time.
        trial: Whether that request is under way.
        by_rate: Whether it opened on the rate of faults alone.
    """

    consecutive: int = 0
    opened_until: float = 0.0
    half_open: bool = False
    trial: bool = False
    by_rate: bool = False
    _opened_at: float = 0.0
    _successes: int = 0
    _open_s: float = OPEN_S
    _closed_at: float | None = None
    _recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def is_open(self) -> bool:
        """Whether requests are kept away."""
        return self.opened_until > 0.0

    @property
    def admits(self) -> bool:
        """Whether one more request may go there, as far as the breaker is concerned."""
        return not (self.half_open and self.trial)

    def success(self, now: float, began: float) -> None:
        """A request ended well.

        Args:
            now: Time, seconds.
            began: When it began; what began before the breaker opened says nothing of now.
        """
        if self._is_old(began):
            return
        self.consecutive = 0
        self._recent.append((now, True))
        if self.is_open:
            # Somebody was let through because too many were open: that was the trial.
            self._begin_trials()
        if self.half_open:
            self._successes += 1
            if self._successes >= CLOSE_AFTER:
                self.half_open = False
                self._recent.clear()
                self._closed_at = now

    def failure(self, now: float, began: float, jitter: float) -> None:
        """A request ended with a fault.

        Args:
            now: Time, seconds.
            began: When it began; what began before the breaker opened says nothing of now.
            jitter: Factor of the open time, around 1.
        """
        if self._is_old(began):
            return
        self.consecutive += 1
        self._recent.append((now, False))
        if self.is_open:
            return
        if self.half_open:
            self._open(now, jitter, by_rate=self.by_rate)
        elif self.consecutive >= CONSECUTIVE:
            self._open(now, jitter, by_rate=False)
        elif self._rate_is_high(now):
            self._open(now, jitter, by_rate=True)

    def passed(self, now: float) -> bool:
        """Ends an open time that is over; True if it did."""
        if not self.is_open or now < self.opened_until:
            return False
        self._begin_trials()
        return True

    def strength(self, now: float) -> float:
        """Share of its weight a backend gets: from SLOW_START_LEAST up to 1 while it starts slowly."""
        if self._closed_at is None:
            return 1.0
        return max(SLOW_START_LEAST, min(1.0, (now - self._closed_at) / SLOW_START_S))

    def _open(self, now: float, jitter: float, *, by_rate: bool) -> None:
        if self._closed_at is not None and now - self._closed_at > OPEN_MAX_S:
            self._open_s = OPEN_S
        self._opened_at = now
        self.opened_until = now + self._open_s * jitter
        self._open_s = min(OPEN_MAX_S, self._open_s * 2)
        self.half_open = self.trial = False
        self.by_rate = by_rate

    def _is_old(self, began: float) -> bool:
        return (self.is_open or self.half_open) and began < self._opened_at

    def _begin_trials(self) -> None:
        self.opened_until = 0.0
        self.half_open = True
        self.trial = False
        self._successes = 0

    def _rate_is_high(self, now: float) -> bool:
        recent = [ok for at, ok in self._recent if now - at <= RATE_WINDOW_S]
        return len(recent) >= RATE_LEAST and recent.count(False) >= RATE * len(recent)
