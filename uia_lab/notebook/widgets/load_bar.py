"""A bar for the load of one model."""

from html import escape
from typing import Any

from traitlets import Dict, Unicode

from uia_lab.notebook.widgets.base import LabWidget
from uia_lab.notebook.widgets.coalesce import Coalescer

INTERVAL_S = 0.05


class LoadBar(LabWidget):
    """How far the load of a model is.

    Args:
        model_id: The model.
    """

    _module = "load_bar.js"

    model_id_shown = Unicode("").tag(sync=True)
    step = Dict().tag(sync=True)

    def __init__(self, model_id: str) -> None:
        super().__init__(model_id_shown=model_id, step={"stage": "finding", "done": 0, "total": 1})
        self._newest = dict(self.step)
        self._coalescer = Coalescer(self._push, lambda: INTERVAL_S)

    def take(self, step: dict[str, Any]) -> None:
        """Takes the next step; on an event loop."""
        self._newest = dict(step)
        self._coalescer.touch()

    def still(self, trouble: str = "") -> dict[str, str]:
        """The text and HTML forms."""
        line = f"{self.model_id_shown}: {'not loaded: ' + trouble if trouble else 'loading'}"
        return {
            "text/plain": line,
            "text/html": f'<p data-testid="uia-not-loaded" style="margin:4px 0">{"✕ " if trouble else ""}'
            f"{escape(line)}</p>",
        }

    def _push(self) -> None:
        self.step = self._newest
