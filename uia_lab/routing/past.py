"""What the log says of past traffic, and what it lets us expect of a backend."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from uia_lab.domain.records import RequestRecord

# What another choice of backend could have changed; a bad request stays one wherever it goes.
CHANCES = frozenset(
    {
        "queue_full",
        "rate_limit_exceeded",
        "backend_failed",
        "stream_interrupted",
        "no_available_backend",
        "overloaded",
        "backend_timeout",
        "deadline_exceeded",
    }
)
AROUND_S = 30.0
FAST_FAILURE_S = 0.05
UNKNOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class Past:
    """One request of the log.

    Args:
        at: When it came, seconds since the epoch.
        task: Its task.
        model: The model that answered, or that was asked for.
        stream: Whether it was streamed.
        key: Digest of its inputs; equal ones are one session to ``prefix_affinity``.
        outcome: As in the log.
        backend_id: Who served it last, if anyone did.
        latency_s: From the first step to the end.
        service_s: Of these at the backend that served it; None where none has.
        first_s: Of these before the first content; None where none came.
        tokens: Tokens generated.
        queued: Whether it had to wait in the queue.
        attempts: Backends tried.
    """

    at: float
    task: str
    model: str | None
    stream: bool
    key: str
    outcome: str
    backend_id: str | None
    latency_s: float
    service_s: float | None
    first_s: float | None
    tokens: int
    queued: bool = False
    attempts: int = 1


def past_of(record: RequestRecord) -> Past | None:
    """What a record says; None where another choice of backend could have changed nothing."""
    if record.outcome not in ("ok", "cancelled") and record.error not in CHANCES:
        return None
    served = record.attempts[-1].latency_ms / 1000 if record.attempts else None
    if served is None and record.outcome in ("ok", "cancelled"):
        served = max(0.0, record.latency_s - record.queued_s)
    known = record.outcome in ("ok", "cancelled")
    first = record.first_token_s
    if first is not None and served is not None:
        # In the log it counts from the beginning of the request.
        first = min(served, max(0.0, first - (record.latency_s - served)))
    return Past(
        record.began_at,
        record.task,
        record.model,
        record.stream,
        record.input_sha256 or record.id,
        record.outcome,
        record.backend_id,
        record.latency_s,
        served if known else None,
        first if known else None,
        record.output_tokens,
        record.queued_s > 0.001,
        len(record.attempts),
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """How quickly some requests were answered.

    Args:
        first_s: Seconds to the first content, the median; 0 where answers came whole.
        token_s: Seconds a token after that, the median.
        whole_s: Seconds for an answer, the median.
    """

    first_s: float
    token_s: float
    whole_s: float

    def seconds(self, tokens: int) -> float:
        """What an answer of so many tokens takes."""
        return self.first_s + tokens * self.token_s if tokens else self.whole_s


_Key = tuple[str | None, str | None, str, bool | None]


class Experience:
    """Speeds and failures of the backends, as past requests show them.

    A request that goes where it went takes as long as it took. Elsewhere it takes that times the ratio of
    what the two backends need for such an answer: the median time to the first content, and the median time a
    token. Of a backend that has not served such requests the speed of all of them together is assumed.

    Args:
        past: Past requests.
        records: Their records, for the attempts.
    """

    def __init__(self, past: Iterable[Past], records: Iterable[RequestRecord]) -> None:
        groups: dict[_Key, list[Past]] = {}
        for item in past:
            if item.outcome == "ok" and item.service_s is not None:
                for key in _keys(item.backend_id, item):
                    groups.setdefault(key, []).append(item)
        self._speeds = {key: _speed(items) for key, items in groups.items()}
        self._failures = _failures(records)

    def seconds(self, past: Past, backend_id: str) -> tuple[float, float | None]:
        """Seconds that a request would take at a backend, and those of them before its first content."""
        there = self._speed(backend_id, past)
        if past.service_s is None or past.backend_id is None:
            first = there.first_s if past.stream else None
            return there.seconds(past.tokens), first
        if past.backend_id == backend_id:
            return past.service_s, past.first_s
        here = self._speed(past.backend_id, past).seconds(past.tokens)
        ratio = there.seconds(past.tokens) / here if here > 0 else 1.0
        return past.service_s * ratio, None if past.first_s is None else past.first_s * ratio

    def failing(self, backend_id: str, at: float) -> tuple[float, float]:
        """The share of attempts at a backend that failed around that time, and how long these took, s."""
        failures = self._failures.get(backend_id)
        return (0.0, FAST_FAILURE_S) if failures is None else failures.around(at)

    def _speed(self, backend_id: str | None, past: Past) -> Speed:
        for key in _keys(backend_id, past):
            if key in self._speeds:
                return self._speeds[key]
        return Speed(0.0, 0.0, UNKNOWN_S)


def _keys(backend_id: str | None, past: Past) -> tuple[_Key, ...]:
    """Groups that a request at a backend belongs to, the narrowest first."""
    return (
        (backend_id, past.model, past.task, past.stream),
        (backend_id, None, past.task, past.stream),
        (backend_id, None, past.task, None),
        (None, past.model, past.task, past.stream),
        (None, None, past.task, past.stream),
        (None, None, past.task, None),
    )


def _speed(items: Sequence[Past]) -> Speed:
    firsts = [item.first_s for item in items if item.stream and item.first_s is not None]
    first = median(firsts) if firsts else 0.0
    rates = [
        max(0.0, (item.service_s or 0.0) - ((item.first_s or 0.0) if item.stream else 0.0)) / item.tokens
        for item in items
        if item.tokens
    ]
    return Speed(first, median(rates) if rates else 0.0, median([item.service_s or 0.0 for item in items]))


class _Failures:
    """Attempts at one backend in time."""

    def __init__(self, attempts: list[tuple[float, bool, float]]) -> None:
        attempts.sort()
        self._times = [at for at, _, _ in attempts]
        self._failed = [0]
        for _, failed, _ in attempts:
            self._failed.append(self._failed[-1] + failed)
        self._seconds = median([seconds for _, failed, seconds in attempts if failed] or [FAST_FAILURE_S])

    def around(self, at: float) -> tuple[float, float]:
        low = bisect_left(self._times, at - AROUND_S)
        high = bisect_right(self._times, at + AROUND_S)
        failed = self._failed[high] - self._failed[low]
        return failed / max(1, high - low), self._seconds


def _failures(records: Iterable[RequestRecord]) -> dict[str, _Failures]:
    attempts: dict[str, list[tuple[float, bool, float]]] = {}
    for record in records:
        at = record.began_at + record.queued_s
        for attempt in record.attempts:
            seconds = attempt.latency_ms / 1000
            fault = attempt.outcome == "failed" and attempt.error in CHANCES
            attempts.setdefault(attempt.backend_id, []).append((at, fault, seconds))
            at += seconds if math.isfinite(seconds) else 0.0
    return {backend: _Failures(items) for backend, items in attempts.items()}
