"""Who asks, and what they may do."""

from collections.abc import Iterable
from dataclasses import dataclass

from uia_lab.domain.errors import BadRequest, NotAllowed, suggestion

INFER = "infer"
READ = "read"
ADMIN = "admin"
SCOPES = frozenset({INFER, READ, ADMIN})


def known_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes as a set, each checked.

    Args:
        scopes: Names out of ``infer``, ``read`` and ``admin``.

    Raises:
        BadRequest: None given, or an unknown one.
    """
    asked = frozenset((scopes,) if isinstance(scopes, str) else scopes)
    if not asked:
        raise BadRequest(f"scopes: give at least one of {', '.join(sorted(SCOPES))}", param="scopes")
    for scope in asked - SCOPES:
        raise BadRequest(f"scopes: {scope!r} is unknown.{suggestion(str(scope), SCOPES)}", param="scopes")
    return asked


@dataclass(frozen=True, slots=True)
class Principal:
    """An identity that has been verified.

    Args:
        name: What logs, queues and request owners call it.
        scopes: Out of ``infer``, ``read`` and ``admin``; ``admin`` implies the others.
    """

    name: str
    scopes: frozenset[str]

    def allows(self, scope: str) -> bool:
        """Whether this principal holds a scope, directly or by being an administrator."""
        return scope in self.scopes or ADMIN in self.scopes

    def require(self, scope: str) -> None:
        """Passes when the scope is held.

        Args:
            scope: ``infer``, ``read`` or ``admin``.

        Raises:
            NotAllowed: It is not; the message names the scope that is missing.
        """
        if not self.allows(scope):
            held = ", ".join(sorted(self.scopes)) or "none"
            raise NotAllowed(f"this needs the scope {scope!r}; {self.name} has: {held}")
