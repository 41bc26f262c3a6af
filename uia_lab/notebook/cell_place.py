"""A place below the running cell, which can be filled anew later and from other threads."""

import contextvars
import uuid
from typing import Any


class CellPlace:
    """An output of the running cell.

    Args:
        bundle: What it shows at first, by MIME type.
    """

    def __init__(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        self._display_id = uuid.uuid4().hex
        # What is shown later still belongs to this cell.
        self._here = contextvars.copy_context()
        display(bundle, raw=True, display_id=self._display_id)

    def put(self, bundle: dict[str, Any]) -> None:
        """Shows something else in its place."""
        from IPython.display import display

        # A copy, since a context can be entered by one thread at a time.
        self._here.copy().run(display, bundle, raw=True, display_id=self._display_id, update=True)
