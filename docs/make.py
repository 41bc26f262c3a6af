"""Writes into the pages of docs/ what the code says of itself: ``python -m docs.make [--check]``.

A page has a line ``<!-- made: NAME -->`` for each table; what follows, up to ``<!-- end -->``, is replaced.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from uia_lab.config import InferenceServiceConfig
from uia_lab.doors.operations import operations
from uia_lab.doors.routes import routes
from uia_lab.doors.websocket import MESSAGES

PAGES = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """Every setting, with its default, its environment variable and its help."""
    traits = InferenceServiceConfig.class_own_traits(config=True)
    own = {name: traits[name] for name in vars(InferenceServiceConfig) if name in traits}
    return _table(
        ("setting", "default", "environment", "what it does"),
        (
            (f"`{name}`", f"`{trait.default()!r}`", _code(trait.metadata.get("env")), trait.help)
            for name, trait in own.items()
        ),
    )


def doors() -> str:
    """Every door, with what it takes and the scopes that open it."""
    return _table(
        ("", "address", "scope", "what it does"),
        (
            (
                item.method,
                f"`{item.path}{'?' if item.query else ''}{'&'.join(f'{name}=' for name in item.query)}`"
                + (f" `{{{', '.join(item.body)}}}`" if item.body else ""),
                " or ".join(item.scopes) or "anybody",
                item.summary,
            )
            for item in operations(routes())
        ),
    )


def messages() -> str:
    """Every message that clients of the WebSocket send, with its fields and its scope."""
    return _table(
        ("type", "fields", "scope", "what it does"),
        ((f"`{name}`", *_message(name, item.handler.__doc__, item.scope)) for name, item in MESSAGES.items()),
    )


def _message(name: str, about: str | None, scope: str | None) -> tuple[str, str, str]:
    text = inspect.cleandoc(about or "")
    fields = re.search(rf"``{name}\s+\{{([^}}]*)\}}``", text)
    what = (
        re.sub(r"^``[^`]*``: ", "", text.split("\n\n", maxsplit=1)[0]).replace("``", "`").replace("\n", " ")
    )
    return _code(fields and fields[1]), scope or "any", what[:1].upper() + what[1:]


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    # A pipe ends a cell, in code too.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


TABLES: dict[str, Callable[[], str]] = {"settings": settings, "doors": doors, "messages": messages}


def made(page: str) -> str:
    """A page with its tables as the code says they are."""
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], page)


def main() -> int:
    """Writes the pages; with ``--check`` it only says which ones are stale.

    Returns:
        The exit status: 1 where a page is stale.
    """
    check = "--check" in sys.argv[1:]
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        there = path.read_text(encoding="utf-8")
        if (wanted := made(there)) != there:
            stale.append(path.name)
            if not check:
                path.write_text(wanted, encoding="utf-8")
    if stale:
        what = "stale; python -m docs.make writes them" if check else "written"
        print(f"docs: {', '.join(stale)}: {what}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
