"""Which backends are lent to peers: what runs on this machine, and what the owner named."""

from collections.abc import Collection

from uia_lab.domain.backends import BackendType
from uia_lab.routing.registry import Registered

# Tools run code, a peer's machine is not ours to lend, and a hybrid may lead to any of these.
_NEVER_UNNAMED = frozenset({BackendType.CLI, BackendType.MCP, BackendType.P2P, BackendType.HYBRID})


def is_lent(entry: Registered, named: Collection[str]) -> bool:
    """Whether peers may use a backend.

    Args:
        entry: The backend.
        named: Ids of backends that the owner lends, whatever they are.
    """
    if entry.backend_id in named:
        return True
    keyed = bool(getattr(entry.instance, "keyed", False))
    return not (entry.external or keyed or entry.capabilities.side_effects or entry.type in _NEVER_UNNAMED)
