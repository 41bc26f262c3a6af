"""A generation while it runs, and what can be done with it afterwards."""

import threading
import uuid
from dataclasses import asdict
from typing import Any

from traitlets import Bool, Float, List, Unicode

from uia_lab.domain.errors import InferenceError
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.presenters import Places
from uia_lab.notebook.widgets.base import LabWidget
from uia_lab.notebook.widgets.coalesce import Coalescer

# The server drops a kernel's messages above 1000 a second, the last one included; eyes need far fewer.
INTERVAL_S = 0.05
# The whole text goes with each update, so a long one is sent less often.
CHARACTERS_PER_S = 200_000


class GenerationView(LabWidget):
    """Text, state and figures of one generation, with a Stop button.

    Stop goes from the browser to the server when the browser can reach it, so that it works while the
    kernel waits in the cell; the kernel is told as well, which is enough where the kernel is free (local
    mode with ``wait=False``). A kernel that waits in local mode has to be interrupted.

    When the generation has ended, a still form takes the widget's place (:meth:`still`); the page finds it by
    its mark and adds the buttons: ask elsewhere, copy, copy as a script.

    Args:
        generation: What to show.
        direct: Whether the browser may be able to reach the service.
        places: Finds out which backends may be asked the same.
    """

    _module = "generation_view.js"

    state = Unicode("waiting").tag(sync=True)
    text = Unicode("").tag(sync=True)
    turns: List[Any] = List().tag(sync=True)
    backend = Unicode("").tag(sync=True)
    model = Unicode("").tag(sync=True)
    request_id = Unicode("").tag(sync=True)
    error = Unicode("").tag(sync=True)
    first_token_s = Float(None, allow_none=True).tag(sync=True)
    tokens_per_s = Float(None, allow_none=True).tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)
    mark = Unicode("").tag(sync=True)
    code = Unicode("").tag(sync=True)
    places: List[Any] = List(None, allow_none=True).tag(sync=True)
    notice = Unicode("").tag(sync=True)

    def __init__(self, generation: Generation, *, direct: bool, places: Places | None = None) -> None:
        # The browser reads the mark when the widget is made, before anything is changed.
        super().__init__(mark=uuid.uuid4().hex, direct=direct)
        self.generation = generation
        self._places = places
        self._pushing = threading.Lock()
        self._coalescer = Coalescer(self.flush, self._pace)
        if generation.request is not None:
            self.code = generation.to_openai()
        self.on_msg(self._told)
        self.flush()
        generation.subscribe(self._changed)

    def flush(self) -> None:
        """Sends the present state; from whichever thread, one at a time."""
        shown = self.generation
        with self._pushing, self.hold_sync():
            self.state = shown.state
            self.text = shown.text
            self.turns = [asdict(turn) for turn in shown.turns]
            self.backend = shown.backend or ""
            self.model = shown.model or ""
            self.request_id = shown.request_id or ""
            self.error = shown.error.message if shown.error else ""
            self.first_token_s = shown.time_to_first_token
            self.tokens_per_s = shown.tokens_per_second

    def still(self) -> dict[str, str]:
        """The text and HTML forms that stay, with the mark by which the page finds them."""
        return {**self.generation._repr_mimebundle_(), "text/html": self.generation.html(self.mark)}

    def _changed(self) -> None:
        if self.generation.done:
            self._coalescer.flush()
        else:
            self._coalescer.touch()

    def _pace(self) -> float:
        return max(INTERVAL_S, len(self.text) / CHARACTERS_PER_S)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        # May run in a kernel subshell's thread; what is called here is safe there.
        match content:
            case {"type": "stop"}:
                self.generation.stop()
            case {"type": "places"} if self._places is not None:
                self._places(self.generation, self._offer)
            case {"type": "retry", "backend": str() | None as backend}:
                try:
                    self.generation.retry(backend)
                except (InferenceError, RuntimeError) as error:
                    self.notice = str(error)

    def _offer(self, places: list[dict[str, str]]) -> None:
        with self._pushing:
            self.places = places
