"""Answers that arrive side by side."""

import threading
import uuid
from typing import Any

from traitlets import Bool, List, Unicode

from uia_lab.notebook.comparison import Comparison
from uia_lab.notebook.widgets.base import LabWidget
from uia_lab.notebook.widgets.coalesce import Coalescer

INTERVAL_S = 0.05
# All texts go with each update, so long ones are sent less often.
CHARACTERS_PER_S = 200_000


class CompareView(LabWidget):
    """Text and figures of several answers, each with a Stop button; afterwards a still form takes its place.

    Args:
        comparison: What to show.
        direct: Whether the browser may be able to reach the service.
    """

    _module = "compare_view.js"

    prompt = Unicode("").tag(sync=True)
    columns: List[dict[str, Any]] = List().tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)
    mark = Unicode("").tag(sync=True)
    table = Unicode("").tag(sync=True)

    def __init__(self, comparison: Comparison, *, direct: bool) -> None:
        # The browser reads the mark when the widget is made, before anything is changed.
        super().__init__(mark=uuid.uuid4().hex, direct=direct, prompt=comparison.prompt)
        self.comparison = comparison
        self._pushing = threading.Lock()
        self._coalescer = Coalescer(self.flush, self._pace)
        self.on_msg(self._told)
        self.flush()
        comparison.subscribe(self._changed)

    def flush(self) -> None:
        """Sends the present state; from whichever thread, one at a time."""
        with self._pushing, self.hold_sync():
            self.columns = [self._column(index) for index in range(len(self.comparison))]
            if self.comparison.done:
                self.table = self.comparison.still()["text/plain"]

    def still(self) -> dict[str, str]:
        """The text and HTML forms that stay, with the mark by which the page finds them."""
        return self.comparison.still(self.mark)

    def _column(self, index: int) -> dict[str, Any]:
        one = self.comparison[index]
        return {
            "label": self.comparison.labels[index],
            "state": one.state,
            "text": one.text,
            "error": one.error.message if one.error else "",
            "backend": one.backend or "",
            "first_token_s": one.time_to_first_token,
            "tokens_per_s": one.tokens_per_second,
            "elapsed_s": one.elapsed,
            "tokens": one.usage.output_tokens if one.usage else None,
            "cost": self.comparison.cost(index),
            "fastest": self.comparison.fastest == index,
            "request_id": one.request_id or "",
        }

    def _changed(self) -> None:
        try:
            self._coalescer.flush() if self.comparison.done else self._coalescer.touch()
        except RuntimeError:  # not on the Lab's loop, where there is nothing to coalesce
            self.flush()

    def _pace(self) -> float:
        return max(INTERVAL_S, sum(len(one["text"]) for one in self.columns) / CHARACTERS_PER_S)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        # May run in a kernel subshell's thread; Generation.stop is safe there.
        match content:
            case {"type": "stop", "index": index}:
                if index in range(len(self.comparison)):
                    self.comparison[index].stop()
            case {"type": "stop"}:
                self.comparison.stop()
