"""The JavaScript and CSS of the widgets."""

from functools import cache
from pathlib import Path

_STATIC = Path(__file__).parent.parent / "static"


@cache
def esm(*names: str) -> str:
    """The module of a widget: the shared live connection, then the widget's own files.

    anywidget takes one module a widget and cannot resolve imports between our files, so they are joined.
    ``live.js`` keeps its state on the page and not in the module: widgets still share one socket.
    """
    return "\n".join((_STATIC / part).read_text("utf-8") for part in ("live.js", *names))


@cache
def css() -> str:
    """The style sheet all widgets share."""
    return (_STATIC / "uia.css").read_text("utf-8")
