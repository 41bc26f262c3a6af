"""What became of some traffic, in figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from uia_lab.routing.figures import percentile
from uia_lab.routing.past import Past


@dataclass(slots=True)
class Tally:
    """What became of some traffic.

    Attributes:
        strategy: Name of the strategy; None where it may have been several.
        outcomes: Requests by outcome.
        latencies: Of those that went well, s.
        first: Seconds to their first content.
        served: How many of them by backend.
        queued: Requests that had to wait in the queue.
        retried: Requests that took more than one attempt.
    """

    strategy: str | None
    outcomes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("ok", "failed", "cancelled", "rejected"), 0)
    )
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    queued: int = 0
    retried: int = 0

    def answered(self, backend_id: str, latency: float, first: float | None) -> None:
        """One went well."""
        self.outcomes["ok"] += 1
        self.latencies.append(latency)
        if first is not None:
            self.first.append(first)
        self.served[backend_id] = self.served.get(backend_id, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """The figures; latencies in ms, shares from 0 to 1."""
        total = sum(self.served.values())
        return {
            "strategy": self.strategy,
            **self.outcomes,
            "queued": self.queued,
            "retried": self.retried,
            "p50_ms": _ms(self.latencies, 50),
            "p95_ms": _ms(self.latencies, 95),
            "p99_ms": _ms(self.latencies, 99),
            "first_token_p50_ms": _ms(self.first, 50),
            "first_token_p99_ms": _ms(self.first, 99),
            "share": {name: count / total for name, count in sorted(self.served.items())},
        }


def happened(past: Iterable[Past]) -> Tally:
    """What became of the requests in fact."""
    tally = Tally(None)
    for item in past:
        tally.queued += item.queued
        tally.retried += item.attempts > 1
        if item.outcome == "ok":
            waited = item.latency_s - (item.service_s or item.latency_s)
            first = None if item.first_s is None else waited + item.first_s
            tally.answered(item.backend_id or "", item.latency_s, first)
        else:
            tally.outcomes[item.outcome] += 1
    return tally


def _ms(seconds: Sequence[float], q: float) -> float | None:
    value = percentile(seconds, q)
    return None if value is None else round(value * 1000, 3)
