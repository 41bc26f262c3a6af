"""Who asks, and what they may do."""

from collections.abc import Iterable
from dataclasses import dataclass

from uia_lab.domain.errors import BadRequest, NotAllowed, suggestion
from uia_lab.domain.keys import Limits

INFER = "infer"
READ = "read"
ADMIN = "admin"
UNLIMITED = Limits()
# Who stands behind keys of a process itself, and behind nobody in particular.
OUR_PRINCIPALS = frozenset({"kernel", "local", "serve"})
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
        key_id: Id of the key it came by, where that is a kept one.
        limits: What it is limited to.
        via: Ids of the instances that everything of this identity has passed already, nearest last.
    """

    name: str
    scopes: frozenset[str]
    key_id: str | None = None
    limits: Limits = UNLIMITED
    via: tuple[str, ...] = ()

    @property
    def is_handed_out(self) -> bool:
        """Whether it came by a scoped key, which travels, and not as this machine's own user."""
        return self.key_id is not None

    def allows(self, scope: str) -> bool:
        """Whether this principal holds a scope, directly or by being an administrator."""
        return scope in self.scopes or ADMIN in self.scopes

    def require(self, *scopes: str) -> None:
        """Passes when one of the scopes is held.

        Args:
            *scopes: Out of ``infer``, ``read`` and ``admin``.

        Raises:
            NotAllowed: None is; the message names what is missing.
        """
        if not any(self.allows(scope) for scope in scopes):
            held = ", ".join(sorted(self.scopes)) or "none"
            needed = " or ".join(map(repr, scopes))
            raise NotAllowed(f"this needs the scope {needed}; {self.name} has: {held}")
