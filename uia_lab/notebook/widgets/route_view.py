"""Why a backend serves a request, and not another."""

from collections.abc import Mapping
from typing import Any

from traitlets import Dict

from uia_lab.notebook.explanation import still
from uia_lab.notebook.widgets.base import LiveWidget, Service


class RouteView(LiveWidget):
    """The candidates of a decision, their scores and reasons: of a request that ran, or of one that might.

    Args:
        service: Whom to ask.
        report: The status report to begin with.
        shown: A request as ``GET /requests/{id}`` tells it, or a decision under ``decision``; the browser
            asks for the last requests where there is none.
    """

    _module = "route_view.js"

    shown = Dict().tag(sync=True)

    def __init__(
        self, service: Service, report: Mapping[str, Any], *, shown: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(service, report, shown=dict(shown or {}))

    def still(self) -> dict[str, Any]:
        """The decision as a table."""
        return still(self.shown)
