"""The peers of a node as backends of a manager, for as long as they lend something."""

import asyncio
import logging
from contextlib import aclosing, suppress

from uia_lab.backends.p2p import P2PBackend, capabilities_of
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import InferenceError
from uia_lab.domain.peers import PeerInfo
from uia_lab.domain.texts import one_line
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.p2p.node import P2PNode

log = logging.getLogger(__name__)

_PREFIX = "12D3KooW"
_LONGEST_NAME = 64
_MOST_AT_ONCE = 10_000


class PeerBackends:
    """Follows a node: each peer that may be asked is a backend, and its changes are the manager's at once.

    Belongs to the loop of the node, which has to be the manager's.

    Args:
        node: The node.
        manager: Where the peers are registered.
    """

    def __init__(self, node: P2PNode, manager: BackendManager) -> None:
        self._node = node
        self._manager = manager
        self._backends: dict[str, P2PBackend] = {}
        self._registered: dict[str, tuple[object, ...]] = {}
        self._looks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Registers the peers there are, and follows the node from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name="uia-peer-backends")

    async def stop(self) -> None:
        """Takes the backends out; what they work on ends."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for peer_id in list(self._backends):
            self._remove(peer_id)
        looks = list(self._looks)
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    async def _follow(self) -> None:
        async with aclosing(self._node.subscribe()) as changes:  # type: ignore[type-var]
            async for info in changes:
                try:
                    self._take(info)
                except Exception:
                    # What one peer says of itself must not keep us from hearing of the others.
                    log.exception("the peer %s cannot be a backend", info.peer_id)

    def _take(self, info: PeerInfo) -> None:
        if not self._wanted(info):
            self._remove(info.peer_id)
            return
        # What the manager cannot change of a backend while it is registered.
        fixed = (_name(info), info.trusted and info.ours)
        if self._registered.get(info.peer_id) != fixed:
            self._register(info)
            self._registered[info.peer_id] = fixed
        backend_id = backend_id_of(info.peer_id)
        limit = _limit(info)
        known = self._manager.get_backend(backend_id)
        if known is not None and known.max_concurrency != limit:
            self._manager.set_max_concurrency(backend_id, limit)
        self._backends[info.peer_id].told()
        look = asyncio.create_task(self._look(backend_id), name=f"uia-peer-{backend_id}")
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    def _wanted(self, info: PeerInfo) -> bool:
        offered = info.offer is not None and bool(info.offer.models or info.offer.tasks)
        return offered and (info.trusted or self._node.mode == "open")

    def _register(self, info: PeerInfo) -> None:
        backend = self._backends.setdefault(info.peer_id, P2PBackend(self._node, info.peer_id))
        self._manager.register_backend(
            backend_id_of(info.peer_id),
            BackendType.P2P,
            _name(info),
            backend,
            capabilities_of(info),
            endpoint=f"/p2p/{info.peer_id}",
            metadata={"peer_id": info.peer_id},
            max_concurrency=_limit(info),
        )

    def _remove(self, peer_id: str) -> None:
        self._registered.pop(peer_id, None)
        backend = self._backends.pop(peer_id, None)
        if backend is None:
            return
        backend_id = backend_id_of(peer_id)
        there = self._manager.get_backend(backend_id)
        if there is not None and there.instance is backend:
            self._manager.unregister_backend(backend_id)

    async def _look(self, backend_id: str) -> None:
        with suppress(InferenceError):
            # It may be taken out while it is looked at.
            await self._manager.probe(backend_id)


def backend_id_of(peer_id: str) -> str:
    """Id of the backend a peer is: short, and as unlikely to be another's as the peer id itself.

    Args:
        peer_id: The peer's id.
    """
    return f"p2p-{peer_id[len(_PREFIX) :][:16] if peer_id.startswith(_PREFIX) else peer_id}"


def _name(info: PeerInfo) -> str:
    return one_line(info.name)[:_LONGEST_NAME] or info.peer_id[-8:]


def _limit(info: PeerInfo) -> int | None:
    most = info.offer.max_concurrent if info.offer is not None else None
    return None if most is None else min(max(1, most), _MOST_AT_ONCE)
