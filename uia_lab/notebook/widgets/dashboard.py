"""Everything about a service in one place."""

from collections.abc import Callable, Mapping
from typing import Any

from ipywidgets import Widget
from traitlets import List, Unicode

from uia_lab.notebook.status import still
from uia_lab.notebook.widgets.balancing_chart import BalancingChart
from uia_lab.notebook.widgets.base import LiveWidget, Service, reference
from uia_lab.notebook.widgets.model_manager import ModelManager
from uia_lab.notebook.widgets.peer_map import PeerMap
from uia_lab.notebook.widgets.route_view import RouteView
from uia_lab.notebook.widgets.status_board import StatusBoard

Tab = Callable[[Any, Service, Mapping[str, Any]], Widget]

TABS: dict[str, Tab] = {
    "Status": lambda _lab, service, report: StatusBoard(service, report),
    "Balance": lambda _lab, service, report: BalancingChart(service, report),
    "Requests": lambda _lab, service, report: RouteView(service, report),
    "Models": lambda _lab, service, _report: ModelManager(service.transport, service.spawn),
    "Chat": lambda lab, _service, _report: lab.chat().view(),
    "Peers": lambda _lab, service, report: PeerMap(service, report),
}
"""Name of each tab, and what makes its widget from the Lab, the way to its service, and a status report."""


class Dashboard(LiveWidget):
    """The widgets of a Lab in tabs; each is drawn when its tab is opened first.

    Args:
        lab: The Lab.
        service: Whom to ask.
        report: The status report to begin with.
    """

    _module = "dashboard.js"

    names = List(Unicode()).tag(sync=True)
    widgets = List(Unicode()).tag(sync=True)

    def __init__(self, lab: Any, service: Service, report: Mapping[str, Any]) -> None:
        self.children = [make(lab, service, report) for make in TABS.values()]
        references = [reference(child) for child in self.children]
        super().__init__(service, report, names=list(TABS), widgets=references)

    def still(self) -> dict[str, Any]:
        """The status, which says most."""
        return still(self.report)

    def close(self) -> None:
        """Closes the widgets in it too."""
        for child in self.children:
            child.close()
        super().close()
