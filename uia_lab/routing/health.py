"""How a backend is: status, whether it is routable, and why; and what an error says about it."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from uia_lab.domain.backends import BackendStatus, Probe
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    Cancelled,
    InferenceError,
    NoBackendAvailable,
    NotAllowed,
    QueueFull,
    RateLimited,
    StreamInterrupted,
    Unauthenticated,
)
from uia_lab.routing.breaker import Breaker

BUSY_S = 1.0
PAUSE_MAX_S = 60.0
MISCONFIGURED_S = 60.0
TROUBLES = 10
LONGEST = 500
_DOWN = (BackendStatus.UNHEALTHY, BackendStatus.OFFLINE, BackendStatus.INITIALIZING)


class OutcomeClass(Enum):
    """What the end of an attempt says about the backend."""

    SUCCESS = "success"
    BUSY = "busy"
    FAULT = "fault"
    MISCONFIGURED = "misconfigured"
    NONE = "none"


def classify(error: InferenceError | None) -> OutcomeClass:
    """The outcome class of an attempt that ended with this error, or well.

    A clean refusal of a bad request is the caller's fault: it proves that the backend works.
    """
    match error:
        case None:
            return OutcomeClass.SUCCESS
        case Cancelled():
            return OutcomeClass.NONE
        case QueueFull() | RateLimited() | NoBackendAvailable():
            return OutcomeClass.BUSY
        case Unauthenticated() | NotAllowed():
            return OutcomeClass.MISCONFIGURED
        case BackendFailed() | BackendTimeout() | StreamInterrupted():
            return OutcomeClass.FAULT
        case InferenceError(http_status=status) if 400 <= status < 500:
            return OutcomeClass.SUCCESS
        case _:
            return OutcomeClass.NONE


@dataclass(frozen=True, slots=True)
class Trouble:
    """A request ended with an error that is the backend's.

    Args:
        code: The error's code.
        message: Its text.
        at: Time on the router's clock, seconds.
    """

    code: str
    message: str
    at: float


@dataclass(slots=True)
class Health:
    """Status of one backend and when it may serve again.

    Attributes:
        status: The status.
        reason: Why, in words.
        breaker: Its breaker.
        paused_until: Time before which it asked, or needs, to be left alone.
        last_check: Time of the last probe, or None.
        troubles: The latest errors, oldest first.
    """

    status: BackendStatus = BackendStatus.UNKNOWN
    reason: str = "not probed yet"
    breaker: Breaker = field(default_factory=Breaker)
    paused_until: float = 0.0
    last_check: float | None = None
    troubles: deque[Trouble] = field(default_factory=lambda: deque(maxlen=TROUBLES))
    _down: bool = False

    @property
    def ejected(self) -> bool:
        """Whether its breaker alone keeps requests away."""
        return self.breaker.is_open and not self._down

    def routable(self, now: float) -> bool:
        """Whether requests may be sent now."""
        return not self._down and not self.breaker.is_open and now >= self.paused_until

    def returns_at(self, now: float) -> float | None:
        """When it becomes routable by the passing of time alone; None if it is, or if that needs a probe."""
        if self._down:
            return None
        at = max(self.breaker.opened_until, self.paused_until)
        return at if at > now or self.breaker.is_open else None

    def probed(self, probe: Probe, now: float) -> None:
        """Takes in what a probe found.

        A probe that passes while real requests fail does not close the breaker: only requests do.
        """
        self.last_check = now
        was_down, self._down = self._down, probe.status in _DOWN
        if self._down:
            self.status, self.reason = probe.status, probe.reason
        elif self.breaker.is_open or now < self.paused_until:
            if was_down:
                self.status = BackendStatus.UNHEALTHY if self.breaker.is_open else BackendStatus.DEGRADED
                self.reason = f"answers again, and is left alone for a while yet: {probe.reason}"
        elif self.breaker.half_open or self.breaker.consecutive:
            self.status = BackendStatus.DEGRADED
        else:
            self.status, self.reason = probe.status, probe.reason

    def succeeded(self, now: float, began: float) -> None:
        """A request ended well that began at ``began``."""
        self.breaker.success(now, began)
        if self.breaker.is_open:
            return
        self._down = False
        self.paused_until = 0.0
        if self.breaker.half_open:
            self.status = BackendStatus.DEGRADED
            self.reason = "one success after a break; tried once more before it is trusted"
        else:
            self.reason = "serving requests"
            self.status = BackendStatus.HEALTHY

    def failed(self, error: InferenceError, now: float, began: float, jitter: float) -> None:
        """A request ended with a fault that began at ``began``."""
        self._note(error, now)
        self.breaker.failure(now, began, jitter)
        count = self.breaker.consecutive
        if self.breaker.is_open and self.breaker.by_rate:
            self.reason = f"at least half of the recent requests failed, the last: {error.message}"
        else:
            times = "the last request" if count == 1 else f"the last {count} requests"
            self.reason = f"{times} failed: {error.message}"
        if not self._down:
            self.status = BackendStatus.UNHEALTHY if self.breaker.is_open else BackendStatus.DEGRADED

    def busy(self, error: InferenceError, now: float) -> None:
        """It asked to be left alone for a while; that is no fault."""
        self._note(error, now)
        wait = min(BUSY_S if error.retry_after is None else max(0.0, error.retry_after), PAUSE_MAX_S)
        self.paused_until = max(self.paused_until, now + wait)
        self.reason = f"asked to be left alone for {wait:.1f} s: {error.message}"

    def misconfigured(self, error: InferenceError, now: float) -> None:
        """It refuses our credentials: nothing is sent for a while, so that no account gets locked."""
        self._note(error, now)
        self.status = BackendStatus.UNHEALTHY
        self.paused_until = now + MISCONFIGURED_S
        self.reason = f"refuses our credentials: {error.message}"

    def passed(self, now: float) -> None:
        """Lets time pass: an open breaker begins its trials, a pause ends."""
        if self.breaker.passed(now):
            self.status = BackendStatus.DEGRADED
            self.reason = f"tried with one request after a break; before: {self.reason}"
        if self.paused_until and now >= self.paused_until:
            self.paused_until = 0.0
            if self.status is BackendStatus.UNHEALTHY and not self._down and not self.breaker.is_open:
                self.status = BackendStatus.DEGRADED

    def _note(self, error: InferenceError, now: float) -> None:
        self.troubles.append(Trouble(error.code, error.message[:LONGEST], now))
