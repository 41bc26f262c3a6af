"""A live widget in a cell, and below it the text that stays when there is no kernel any more."""

import contextvars
import uuid
from collections.abc import Callable
from typing import Any


def show_live(view: dict[str, Any], still: Callable[[], dict[str, str]]) -> Callable[[], None]:
    """Shows a widget in the running cell, with its text in an output of its own.

    A widget's own output could only be brought up to date by drawing the widget anew, under the hands of who
    writes in it.

    Args:
        view: The widget's bundle.
        still: The text and HTML forms as they are now; the HTML carries the mark by which the page hides it
            while the widget lives.

    Returns:
        What brings the text up to date, from whichever thread.
    """
    from IPython.display import display

    display(view, raw=True)
    display_id = uuid.uuid4().hex
    display(still(), raw=True, display_id=display_id)
    # What is shown later still belongs to this cell.
    here = contextvars.copy_context()

    def renew() -> None:
        # A copy, since a context can be entered by one thread at a time.
        here.copy().run(display, still(), raw=True, display_id=display_id, update=True)

    return renew
