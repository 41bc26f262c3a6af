"""A generation while it runs."""

import threading
from typing import Any

import anywidget
from traitlets import Bool, Float, Unicode

from uia_lab.notebook.generation import Generation
from uia_lab.notebook.widgets.assets import css, esm
from uia_lab.notebook.widgets.coalesce import Coalescer

# The server drops a kernel's messages above 1000 a second, the last one included; eyes need far fewer.
INTERVAL_S = 0.05
# The whole text goes with each update, so a long one is sent less often.
CHARACTERS_PER_S = 200_000


class GenerationView(anywidget.AnyWidget):
    """Text, state and figures of one generation, with a Stop button.

    Stop goes from the browser to the server when the browser can reach it, so that it works while the
    kernel waits in the cell; the kernel is told as well, which is enough where the kernel is free (local
    mode with ``wait=False``). A kernel that waits in local mode has to be interrupted.

    Args:
        generation: What to show.
        direct: Whether the browser may be able to reach the service.
    """

    _esm = esm("generation_view.js")
    _css = css()

    state = Unicode("waiting").tag(sync=True)
    text = Unicode("").tag(sync=True)
    backend = Unicode("").tag(sync=True)
    model = Unicode("").tag(sync=True)
    request_id = Unicode("").tag(sync=True)
    error = Unicode("").tag(sync=True)
    first_token_s = Float(None, allow_none=True).tag(sync=True)
    tokens_per_s = Float(None, allow_none=True).tag(sync=True)
    direct = Bool(default_value=False).tag(sync=True)

    def __init__(self, generation: Generation, *, direct: bool) -> None:
        super().__init__(direct=direct)
        self._generation = generation
        self._pushing = threading.Lock()
        self._coalescer = Coalescer(self.flush, self._pace)
        self.on_msg(self._told)
        self.flush()
        generation.subscribe(self._changed)

    def flush(self) -> None:
        """Sends the present state; from whichever thread, one at a time."""
        shown = self._generation
        with self._pushing, self.hold_sync():
            self.state = shown.state
            self.text = shown.text
            self.backend = shown.backend or ""
            self.model = shown.model or ""
            self.request_id = shown.request_id or ""
            self.error = shown.error.message if shown.error else ""
            self.first_token_s = shown.time_to_first_token
            self.tokens_per_s = shown.tokens_per_second

    def _changed(self) -> None:
        if self._generation.done:
            self._coalescer.flush()
        else:
            self._coalescer.touch()

    def _pace(self) -> float:
        return max(INTERVAL_S, len(self.text) / CHARACTERS_PER_S)

    def _told(self, _widget: Any, content: Any, _buffers: Any) -> None:
        # May run in a kernel subshell's thread; Generation.stop is safe there.
        if isinstance(content, dict) and content.get("type") == "stop":
            self._generation.stop()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        view = super()._repr_mimebundle_(**kwargs)
        data = view[0] if isinstance(view, tuple) else view
        return {**(data or {}), **self._generation._repr_mimebundle_()}
