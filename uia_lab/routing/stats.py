"""What is remembered of the traffic: counters, latencies, success, for one backend and for all requests."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from uia_lab.domain.events import Usage

TAU_S = 10.0
SUCCESS_TAU_S = 30.0
SUCCESS_FLOOR = 0.05
WINDOW = 512

Ending = Literal["ok", "failed", "cancelled", "rejected"]


class PeakEwma:
    """A latency estimate that jumps up at once and comes down slowly.

    A sample above the value replaces it; below, ``value = value * w + sample * (1 - w)`` with
    ``w = exp(-dt / tau)`` (Finagle's peak EWMA).
    """

    __slots__ = ("at", "value")

    def __init__(self, sample: float, now: float) -> None:
        self.value = sample
        self.at = now

    def add(self, sample: float, now: float) -> None:
        """Takes a sample in seconds, observed at ``now``."""
        if sample >= self.value:
            self.value = sample
        else:
            weight = math.exp(-max(0.0, now - self.at) / TAU_S)
            self.value = self.value * weight + sample * (1 - weight)
        self.at = now

    def read(self, now: float, rest: float) -> float:
        """The estimate, decayed towards ``rest`` for the time nothing was seen."""
        weight = math.exp(-max(0.0, now - self.at) / TAU_S)
        return self.value * weight + rest * (1 - weight)


@dataclass(slots=True)
class Counters:
    """Ends of attempts or requests: ``total = ok + failed + cancelled + rejected + in flight``."""

    total: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0

    def begin(self) -> None:
        """One more is under way."""
        self.total += 1

    def end(self, ending: Ending) -> None:
        """One of those under way has ended."""
        setattr(self, ending, getattr(self, ending) + 1)

    @property
    def in_flight(self) -> int:
        """How many are under way."""
        return self.total - self.ok - self.failed - self.cancelled - self.rejected


@dataclass(slots=True)
class BackendStats:
    """Figures of one backend; latencies by (model, task, what is measured)."""

    counters: Counters = field(default_factory=Counters)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    first_tokens: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    token_rates: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    latency_sum: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    last_success: float = -math.inf
    _estimates: dict[tuple[str | None, str, bool], PeakEwma] = field(default_factory=dict)
    _good: float = 0.0
    _tries: float = 0.0
    _decayed_at: float = 0.0

    def succeeded(
        self,
        *,
        model: str | None,
        task: str,
        stream: bool,
        latency: float,
        first_token: float | None,
        usage: Usage,
        now: float,
    ) -> None:
        """Takes in an attempt that ended well; times in seconds."""
        self._decay(now)
        self._good += 1
        self._tries += 1
        self.last_success = now
        self.latencies.append(latency)
        self.latency_sum += latency
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        if first_token is not None and usage.output_tokens:
            self.first_tokens.append(first_token)
            decoding = latency - first_token
            if usage.output_tokens > 1 and decoding > 0:
                self.token_rates.append((usage.output_tokens - 1) / decoding)
        per_token = latency / max(1, usage.output_tokens)
        sample = first_token if stream and first_token is not None else per_token
        self._estimate(model, task, stream, sample, now)

    def failed(self, *, model: str | None, task: str, stream: bool, elapsed: float, now: float) -> None:
        """Takes in a fault; it may raise the latency estimate, never lower it."""
        self._decay(now)
        self._tries += 1
        known = self._estimates.get((model, task, stream))
        if known is None or elapsed > known.value:
            self._estimate(model, task, stream, elapsed, now)

    def estimate(self, model: str | None, task: str, *, stream: bool) -> PeakEwma | None:
        """The latency estimate for such requests, if any was seen."""
        return self._estimates.get((model, task, stream))

    def success(self, now: float) -> float:
        """Decayed success rate, from SUCCESS_FLOOR to 1; 1 where nothing was seen lately."""
        self._decay(now)
        return max(SUCCESS_FLOOR, (self._good + 1) / (self._tries + 1))

    def _estimate(self, model: str | None, task: str, stream: bool, sample: float, now: float) -> None:
        key = (model, task, stream)
        known = self._estimates.get(key)
        if known is not None:
            known.add(sample, now)
            return
        if len(self._estimates) >= WINDOW:
            # A backend that takes any model name must not grow without bound: the oldest goes.
            del self._estimates[next(iter(self._estimates))]
        self._estimates[key] = PeakEwma(sample, now)

    def _decay(self, now: float) -> None:
        factor = math.exp(-max(0.0, now - self._decayed_at) / SUCCESS_TAU_S)
        self._good *= factor
        self._tries *= factor
        self._decayed_at = now


def percentile(values: Iterable[float], q: float) -> float | None:
    """The nearest-rank percentile ``q`` (0 to 100) of the values; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]
