"""A status report with a face: text, HTML and, in a notebook, a live table."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from uia_lab.notebook.tables import html_table, text_table

COLUMNS = ("backend", "type", "status", "in flight", "queue", "ok", "failed", "p50", "first token", "speed")
WORDS = 3
SIGNS = {
    "healthy": "●",
    "degraded": "◐",
    "unhealthy": "▲",
    "offline": "○",
    "initializing": "◌",
    "unknown": "?",
}


class StatusReport(Mapping[str, Any]):
    """The status report of the contract, as it was when it was asked for.

    Args:
        report: The report.
        live: Makes the live table of a notebook from it.
    """

    def __init__(
        self, report: Mapping[str, Any], live: Callable[[dict[str, Any]], Any] | None = None
    ) -> None:
        self._report = dict(report)
        self._live = live

    def __getitem__(self, name: str) -> Any:
        return self._report[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._report)

    def __len__(self) -> int:
        return len(self._report)

    def __repr__(self) -> str:
        return text(self._report)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        from uia_lab.notebook.presenters import in_kernel

        if self._live is not None and in_kernel():
            bundle: dict[str, Any] = self._live(self._report)._repr_mimebundle_()
            return bundle
        return still(self._report)


def still(report: Mapping[str, Any]) -> dict[str, Any]:
    """The text and HTML forms that a saved notebook keeps."""
    return {"text/plain": text(report), "text/html": html(report)}


def headline(report: Mapping[str, Any]) -> str:
    """Totals in one line."""
    by_status = report.get("backends_by_status") or {}
    total = report.get("total_backends", 0)
    return (
        f"{by_status.get('healthy', 0)} of {total} backend{'' if total == 1 else 's'} healthy · "
        f"{report.get('strategy', '?')} · {report.get('in_flight', 0)} in flight · "
        f"{report.get('total_successful', 0)} ok, {report.get('total_failed', 0)} failed, "
        f"{report.get('total_cancelled', 0)} cancelled, {report.get('total_rejected', 0)} rejected"
    )


def _cells(backend: Mapping[str, Any]) -> list[str]:
    metrics = backend.get("metrics") or {}

    def figure(name: str, unit: str = "", digits: int = 0) -> str:
        value = metrics.get(name)
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    status = str(backend.get("status", "unknown"))
    drained = "" if backend.get("enabled", True) else ", drained"
    return [
        str(backend.get("id", "")),
        str(backend.get("type", "")),
        f"{SIGNS.get(status, '?')} {status}{drained}",
        figure("active_connections"),
        figure("current_queue_size"),
        figure("successful_requests"),
        figure("failed_requests"),
        figure("p50_latency_ms", " ms"),
        figure("time_to_first_token_ms", " ms"),
        figure("tokens_per_second", " tok/s"),
    ]


def text(report: Mapping[str, Any]) -> str:
    """The report as an aligned table of plain text."""
    return text_table(headline(report), COLUMNS, _rows(report), WORDS)


def html(report: Mapping[str, Any]) -> str:
    """The report as a plain HTML table."""
    return html_table(headline(report), COLUMNS, _rows(report), WORDS)


def _rows(report: Mapping[str, Any]) -> list[list[str]]:
    return [_cells(backend) for backend in report.get("backends") or ()]
