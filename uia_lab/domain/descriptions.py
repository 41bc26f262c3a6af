"""A backend that people register by its address, as it is asked for, kept and restored."""

from collections.abc import Mapping
from typing import Any

import msgspec

# Options of the kinds that start processes.
_PROGRAMS = frozenset({"command", "arguments", "environment"})


class BackendDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it takes to build a backend again; it never holds a secret, only where one is found.

    Args:
        id: Unique id; one is made from the address where it is empty.
        type: Value of a :class:`uia_lab.domain.backends.BackendType`.
        name: Name for people; the id when absent.
        endpoint: Where it is, without credentials.
        dialect: Name of the dialect it speaks; found by looking at the endpoint when absent.
        models: Models it is asked for; what it lists itself when absent.
        tasks: Tasks it does; those of the dialect when absent.
        api_key_env: Name of the secret it is called with (:mod:`uia_lab.access.secrets`).
        weight: Share of traffic against its peers.
        max_concurrency: Requests at once; the kind's default when absent.
        enabled: False while it is drained.
        options: Further settings of its kind.
    """

    id: str
    type: str
    name: str | None = None
    endpoint: str | None = None
    dialect: str | None = None
    models: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    api_key_env: str | None = None
    weight: float = 1.0
    max_concurrency: int | None = None
    enabled: bool = True
    options: Mapping[str, Any] = {}

    @property
    def runs_programs(self) -> bool:
        """Whether it has this machine run what it says, and not only what the house knows by name."""
        return _runs_programs(msgspec.to_builtins(self))


def _runs_programs(fields: Mapping[str, Any]) -> bool:
    options = fields.get("options") or {}
    parts = options.get("parts")
    return not options.keys().isdisjoint(_PROGRAMS) or any(
        _runs_programs(part)
        for part in (parts if isinstance(parts, (list, tuple)) else ())
        if isinstance(part, Mapping)
    )
