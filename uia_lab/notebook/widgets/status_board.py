"""The backends, live."""

from typing import Any

from uia_lab.notebook.status import still
from uia_lab.notebook.widgets.base import LiveWidget


class StatusBoard(LiveWidget):
    """A live table of a service's backends, with what an operator does to them."""

    _module = "status_board.js"

    def still(self) -> dict[str, Any]:
        """The table as it was."""
        return still(self.report)
