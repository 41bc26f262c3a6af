"""A scoped key as everybody but its holder knows it, and what it is limited to."""

from typing import Any

import msgspec

KEY_PRINCIPAL = "key:"
GUEST_PRINCIPAL = "cli:"
"""Of what works on a request and asks for more on its behalf."""
KEY_ID = "key-"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key is limited to; None does not limit.

    Args:
        models: Names, or patterns such as ``gpt-*``, of models and aliases it may ask for.
        backend_types: Values of the backend types that may serve it.
        requests_per_minute: Requests admitted in any 60 seconds.
        tokens_per_minute: Tokens of prompts and answers in any 60 seconds.
        max_concurrent: Requests at once, those that wait in the queue included.
        token_budget: Tokens in the key's whole life.
    """

    models: tuple[str, ...] | None = None
    backend_types: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    token_budget: int | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key.

    Args:
        id: What it is called in addresses and lists.
        name: What people call it; no two keys have the same.
        digest: SHA-256 of the key.
        scopes: Out of ``infer``, ``read`` and ``admin``.
        created_at: Seconds since the epoch.
        limits: What it is limited to.
        expires_at: When it ends, seconds since the epoch; None for never.
        last_used_at: When it last opened a door, seconds since the epoch.
        tokens_used: Tokens it was charged so far.
    """

    id: str
    name: str
    digest: bytes
    scopes: frozenset[str]
    created_at: float
    limits: Limits = Limits()
    expires_at: float | None = None
    last_used_at: float | None = None
    tokens_used: int = 0

    @property
    def principal(self) -> str:
        """Who its requests belong to; no user of Jupyter's and no later key of that name is called so."""
        return f"{KEY_PRINCIPAL}{self.name}:{self.id.removeprefix(KEY_ID)}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form that lists show; nothing in it opens a door."""
        plain = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _HIDDEN}
        return plain | {"scopes": sorted(self.scopes)} | msgspec.structs.asdict(self.limits)


_HIDDEN = frozenset({"digest", "limits"})
