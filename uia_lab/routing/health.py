"""How a backend is: status, whether it is routable, and why; and what an error says about it."""

from dataclasses import dataclass
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

FAILURES_TO_OPEN = 5
OPEN_S = 5.0
OPEN_MAX_S = 60.0
BUSY_S = 1.0
_CLOSED_TO_TRAFFIC = (BackendStatus.UNHEALTHY, BackendStatus.OFFLINE, BackendStatus.INITIALIZING)


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


@dataclass(slots=True)
class Health:
    """Status of one backend and when it may serve again.

    Attributes:
        status: The status.
        reason: Why, in words.
        failures: Faults since the last success.
        closed_until: Time before which nothing is sent there, by cool-down or Retry-After.
        last_check: Time of the last probe, or None.
    """

    status: BackendStatus = BackendStatus.UNKNOWN
    reason: str = "not probed yet"
    failures: int = 0
    closed_until: float = 0.0
    last_check: float | None = None
    _open_s: float = OPEN_S

    def routable(self, now: float) -> bool:
        """Whether requests may be sent now."""
        return self.status not in _CLOSED_TO_TRAFFIC and now >= self.closed_until

    def returns_at(self, now: float) -> float | None:
        """When it becomes routable by the passing of time alone; None if never or already."""
        return self.closed_until if now < self.closed_until and self._by_time else None

    @property
    def _by_time(self) -> bool:
        return self.status not in _CLOSED_TO_TRAFFIC or self.failures >= FAILURES_TO_OPEN

    def probed(self, probe: Probe, now: float) -> None:
        """Takes in what a probe found; a good one reopens what faults had closed."""
        self.last_check = now
        if probe.status is BackendStatus.HEALTHY and now >= self.closed_until:
            self.failures = 0
            self._open_s = OPEN_S
        elif self.failures >= FAILURES_TO_OPEN:
            # A probe that passes while real requests fail does not cut the cool-down short.
            return
        self.status, self.reason = probe.status, probe.reason

    def succeeded(self) -> None:
        """A request ended well."""
        self.reason = "serving requests"
        self.status = BackendStatus.HEALTHY
        self.failures = 0
        self.closed_until = 0.0
        self._open_s = OPEN_S

    def failed(self, error: InferenceError, now: float) -> None:
        """A request ended with a fault."""
        self.failures += 1
        times = "the last request" if self.failures == 1 else f"the last {self.failures} requests"
        self.reason = f"{times} failed: {error.message}"
        if self.failures >= FAILURES_TO_OPEN:
            self.status = BackendStatus.UNHEALTHY
            self.closed_until = now + self._open_s
            self._open_s = min(OPEN_MAX_S, self._open_s * 2)
        else:
            self.status = BackendStatus.DEGRADED

    def busy(self, error: InferenceError, now: float) -> None:
        """It asked to be left alone for a while; that is no fault."""
        wait = BUSY_S if error.retry_after is None else max(0.0, error.retry_after)
        self.closed_until = max(self.closed_until, now + min(wait, OPEN_MAX_S))
        self.reason = f"asked to wait {wait:.1f} s: {error.message}"

    def misconfigured(self, error: InferenceError) -> None:
        """It refuses our credentials: closed until a probe passes or somebody mends it."""
        self.status = BackendStatus.UNHEALTHY
        self.reason = error.message

    def passed(self, now: float) -> bool:
        """Reopens a backend whose cool-down is over; True if the status changed."""
        if self.status is BackendStatus.UNHEALTHY and self.failures >= FAILURES_TO_OPEN:
            if now < self.closed_until:
                return False
            self.status = BackendStatus.DEGRADED
            self.failures = FAILURES_TO_OPEN - 1
            self.reason = f"tried again after a cool-down; before: {self.reason}"
            return True
        return False
