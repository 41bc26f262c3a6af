"""What the doors offer, read from their table: for ``GET /openapi.yaml`` and for ``docs/rest.md``.

The docstring of a door says what its code cannot: ``GET /path/{id}?query=`` its address, and
``{field, optional?}`` the fields of its JSON body.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tornado.web import RequestHandler

from uia_lab.doors.base import Door

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_WITH_BODY = ("POST", "PUT", "PATCH")
_EVERYTHING_ELSE = "/(.*)"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address.

    Args:
        method: Of HTTP.
        path: Address with its parameters in braces, rooted at ``/``.
        scopes: Scopes of which it takes one; none where it is open to everybody.
        summary: What it does.
        query: Names of its query parameters.
        body: Names of the fields of its JSON body; those that may be absent end in ``?``.
        door: Name of the class that answers.
    """

    method: str
    path: str
    scopes: tuple[str, ...]
    summary: str
    query: tuple[str, ...]
    body: tuple[str, ...]
    door: str

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters in its address."""
        return re.findall(r"\{(\w+)\}", self.path)


def operations(table: list[tuple[str, type[Door]]]) -> Iterator[Operation]:
    """Every operation, in the order of the table.

    Args:
        table: Patterns and doors, as in ``routes()``.
    """
    for pattern, door in table:
        if pattern == _EVERYTHING_ELSE:
            continue
        about = inspect.cleandoc(door.__doc__ or "")
        for method in METHODS:
            handler = getattr(door, method.lower())
            if handler is getattr(RequestHandler, method.lower()):
                continue
            # A handler that is inherited tells nothing of the door.
            own = inspect.cleandoc(handler.__doc__ or "") if method.lower() in vars(door) else ""
            yield Operation(
                method,
                _path(pattern, about),
                door.method_scopes.get(method, door.scopes),
                _summary(about, own),
                _query(about) if method == "GET" else (),
                _body(own) or _body(about) if method in _WITH_BODY else (),
                door.__name__,
            )


def _path(pattern: str, about: str) -> str:
    for written in re.findall(r"/[\w/{}]+", about):
        if re.fullmatch(pattern, written):
            return str(written)
    return re.sub(r"\([^)]*\)", "{id}", pattern)


def _summary(about: str, own: str) -> str:
    """What follows the one address of a door, else what its method says."""
    after = re.match(r"``[A-Z]+ /[^`]*``: (.+)", about, re.DOTALL)
    first = (after[1] if after else own or about).split("\n\n", maxsplit=1)[0]
    what = first.replace("\n", " ").replace("``", "`")
    return what[:1].upper() + what[1:]


def _query(about: str) -> tuple[str, ...]:
    found = re.search(r"\?([\w=&]+)", about)
    return tuple(re.findall(r"\w+", found[1])) if found else ()


def _body(about: str) -> tuple[str, ...]:
    found = re.search(r"(?<=[\s`])\{([^}]*)\}", about)
    return tuple(re.findall(r"\w+\??", found[1])) if found else ()
