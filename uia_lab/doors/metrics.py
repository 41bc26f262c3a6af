"""``GET /metrics``: the status report as Prometheus reads it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from uia_lab.doors.base import Door

OUTCOMES = ("successful", "failed", "cancelled", "rejected")
_GAUGES = (
    ("uia_backend_active_connections", "Requests a backend works on.", "active_connections", 1.0),
    ("uia_backend_queue_size", "Requests that wait and a backend could serve.", "current_queue_size", 1.0),
    ("uia_backend_latency_seconds", "Average latency.", "average_latency_ms", 1e-3),
    ("uia_backend_first_token_seconds", "Time to the first token.", "time_to_first_token_ms", 1e-3),
    ("uia_backend_tokens_per_second", "Tokens a second of one answer.", "tokens_per_second", 1.0),
)
_LABELS = ("backend", "type")


class ServiceCollector(Collector):
    """Reads the report at each scrape; it measures nothing and asks no backend.

    The labels are the ids of registered backends, so there are never more series than backends.

    Args:
        report: Gives the status report.
    """

    def __init__(self, report: Callable[[], Mapping[str, Any]]) -> None:
        self._report = report

    def describe(self) -> Iterable[Metric]:
        """The families, without asking for a report at registration."""
        return _families({})

    def collect(self) -> Iterable[Metric]:
        """The families with their figures."""
        return _families(self._report())


def exposition(report: Callable[[], Mapping[str, Any]]) -> bytes:
    """Our metrics alone, in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServiceCollector(report))
    return generate_latest(registry)


class MetricsDoor(Door):
    """``GET /metrics``."""

    def get(self) -> None:
        """The figures as Prometheus reads them; in Jupyter they are on its own `/metrics` too."""
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(exposition(self.manager.get_backend_status_report))


def _families(report: Mapping[str, Any]) -> Iterator[Metric]:
    backends = report.get("backends", ())
    requests = CounterMetricFamily("uia_requests", "Requests by how they ended.", labels=("outcome",))
    for outcome in OUTCOMES if report else ():
        requests.add_metric((outcome,), report[f"total_{outcome}"])
    yield requests
    running = GaugeMetricFamily("uia_requests_in_flight", "Requests under way.")
    if report:
        running.add_metric((), report["in_flight"])
    yield running
    routable = GaugeMetricFamily("uia_backend_routable", "1 where requests may go.", labels=_LABELS)
    attempts = CounterMetricFamily(
        "uia_backend_attempts", "Attempts by how they ended.", labels=(*_LABELS, "outcome")
    )
    tokens = CounterMetricFamily("uia_backend_tokens", "Tokens.", labels=(*_LABELS, "direction"))
    for backend in backends:
        labels, metrics = _labels(backend), backend["metrics"]
        routable.add_metric(labels, float(backend["routable"]))
        for outcome in OUTCOMES:
            attempts.add_metric((*labels, outcome), metrics.get(f"{outcome}_requests", 0))
        for direction in ("input", "output"):
            tokens.add_metric((*labels, direction), metrics.get(f"{direction}_tokens", 0))
    yield from (routable, attempts, tokens)
    for name, text, key, factor in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=_LABELS)
        for backend in backends:
            if key in backend["metrics"]:
                gauge.add_metric(_labels(backend), backend["metrics"][key] * factor)
        yield gauge


def _labels(backend: Mapping[str, Any]) -> tuple[str, str]:
    return backend["id"], backend["type"]
