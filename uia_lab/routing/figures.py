"""Counters and latencies of some traffic: of a backend, or of one model at it."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from uia_lab.domain.events import Usage

Ending = Literal["ok", "failed", "cancelled", "rejected"]

WINDOW = 512
RATES = 64


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
class Figures:
    """Counters, and the latest latencies of what went well, in seconds."""

    counters: Counters = field(default_factory=Counters)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    first_tokens: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    token_rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES))
    latency_sum: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0

    def succeeded(self, latency: float, first_token: float | None, usage: Usage, *, whole: bool) -> None:
        """Takes in an attempt that ended well, ``whole`` where it came in one piece; times in seconds."""
        self.latencies.append(latency)
        self.latency_sum += latency
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        if first_token is not None and usage.output_tokens:
            self.first_tokens.append(first_token)
            decoding = latency - first_token
            if usage.output_tokens > 1 and decoding > 0 and not whole:
                self.token_rates.append((usage.output_tokens - 1) / decoding)

    def to_dict(self) -> dict[str, float]:
        """The figures by the names of the status report; what has no meaning yet is absent."""
        counters = self.counters
        values: dict[str, float | None] = {
            "total_requests": counters.total,
            "successful_requests": counters.ok,
            "failed_requests": counters.failed,
            "cancelled_requests": counters.cancelled,
            "rejected_requests": counters.rejected,
            "average_latency_ms": self.latency_sum / counters.ok * 1000 if counters.ok else None,
            "p50_latency_ms": _ms(self.latencies, 50),
            "p95_latency_ms": _ms(self.latencies, 95),
            "p99_latency_ms": _ms(self.latencies, 99),
            "time_to_first_token_ms": _ms(self.first_tokens, 50),
            "tokens_per_second": percentile(self.token_rates, 50),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
        return {name: value for name, value in values.items() if value is not None}


def percentile(values: Iterable[float], q: float) -> float | None:
    """The nearest-rank percentile ``q`` (0 to 100) of the values; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


def _ms(seconds: Iterable[float], q: float) -> float | None:
    value = percentile(seconds, q)
    return None if value is None else value * 1000
