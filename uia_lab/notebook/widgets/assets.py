"""The JavaScript and CSS of the widgets."""

import re
from functools import cache
from pathlib import Path

_STATIC = Path(__file__).parent.parent / "static"
SHARED = ("live.js", "elements.js", "service.js", "actions.js")
"""What every widget's module begins with."""
STYLES = ("uia.css", "live.css", "cells.css")


# Comments on lines of their own, and indentation.
_FOR_PEOPLE = re.compile(r"^[ \t]*//.*\n|^[ \t]*/\*[\s\S]*?\*/[ \t]*\n|^[ \t]+", re.MULTILINE)


@cache
def text(name: str) -> str:
    """A file of ours without what only people read: it is saved with each notebook.

    No text in it may go over several lines.
    """
    return _FOR_PEOPLE.sub("", (_STATIC / name).read_text("utf-8"))


@cache
def shared() -> str:
    """What the modules of all widgets have in common.

    A widget has one module, which cannot import our other files, so they are joined. ``live.js`` keeps its
    state on the page and not in the module: widgets still share one socket.
    """
    return "\n".join(text(part) for part in SHARED)


@cache
def esm(name: str) -> str:
    """The whole module of a widget: what is shared, then its own file."""
    return f"{shared()}\n{text(name)}"


@cache
def css() -> str:
    """The style sheet all widgets share."""
    return "\n".join(text(part) for part in STYLES)
