"""Who serves what over time."""

from collections.abc import Mapping
from typing import Any

from traitlets import Unicode

from uia_lab.notebook.tables import html_table, text_table
from uia_lab.notebook.widgets.base import LiveWidget, Service

COLUMNS = ("backend", "share", "served", "failed", "in flight", "queue", "p50", "p95")


class BalancingChart(LiveWidget):
    """Share of each backend, work in flight and latency of the last quarter of an hour, live.

    Args:
        service: Whom to ask.
        report: The status report to begin with.
        window_s: Seconds shown to begin with.
    """

    _module = "balancing_chart.js"

    window = Unicode("120").tag(sync=True)

    def __init__(self, service: Service, report: Mapping[str, Any], *, window_s: int = 120) -> None:
        super().__init__(service, report, window=str(window_s))

    def still(self) -> dict[str, Any]:
        """The figures since the service started, as a table."""
        backends = self.report.get("backends") or ()
        served = sum((item.get("metrics") or {}).get("successful_requests", 0) for item in backends)
        title = (
            f"who served {served} request{'' if served == 1 else 's'} · {self.report.get('strategy', '?')}"
        )
        rows = [_cells(item, served) for item in backends]
        return {"text/plain": text_table(title, COLUMNS, rows), "text/html": html_table(title, COLUMNS, rows)}


def _cells(backend: Mapping[str, Any], served: int) -> list[str]:
    metrics = backend.get("metrics") or {}
    mine = metrics.get("successful_requests", 0)

    def ms(name: str) -> str:
        value = metrics.get(name)
        return "-" if value is None else f"{value:.0f} ms"

    return [
        str(backend.get("id", "")),
        f"{100 * mine / served:.0f} %" if served else "-",
        str(mine),
        str(metrics.get("failed_requests", 0)),
        str(metrics.get("active_connections", 0)),
        str(metrics.get("current_queue_size", 0)),
        ms("p50_latency_ms"),
        ms("p95_latency_ms"),
    ]
