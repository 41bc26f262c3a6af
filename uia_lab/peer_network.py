"""The libp2p network of a service: its node, the peers as backends, what is lent, and who is trusted."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from uia_lab.backends.peer_backends import PeerBackends, backend_id_of
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.errors import BadRequest, InferenceError, NoBackendAvailable
from uia_lab.domain.peers import Invitation, Invite, PeerInfo, Quota
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.lending import Lending
from uia_lab.p2p.node import P2PNode
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.trust import MemoryTrust, TrustStore

log = logging.getLogger(__name__)

SYNC_S = 1.0
INVITE_S = 86_400.0
LONGEST_INVITE_S = 30 * 86_400.0
NOTHING = Quota(models=())
Limit = Annotated[int, msgspec.Meta(ge=1, le=10**12)]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What is agreed with a peer; what is absent stays as it was.

    Args:
        name: What people here call it.
        models: Names or patterns of models it may ask for; none lends it nothing, None all that is lent.
        max_concurrent: Its requests at once; None for no bound.
        tokens_per_minute: Its tokens of prompts and answers in any 60 seconds; None for no bound.
        ours: Whether it is a machine of ours.
    """

    name: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    models: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    max_concurrent: Limit | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_minute: Limit | msgspec.UnsetType | None = msgspec.UNSET
    ours: bool | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not self.name.isprintable():
            raise BadRequest("name must be of signs that can be printed", param="name")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Terms":
        """The terms that a JSON object has among its fields.

        Raises:
            BadRequest: One of them is wrong; the message names it.
        """
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise BadRequest(str(error)) from None

    def quota(self, before: Quota | None = None) -> Quota | None:
        """The quota it stands for; None where nothing of it is said."""
        said = {
            name: value
            for name in Quota.__struct_fields__
            if (value := getattr(self, name)) is not msgspec.UNSET
        }
        return msgspec.structs.replace(before or Quota(), **said) if said else None


class PeerNetwork:
    """Joins the network, lends to peers and borrows from them.

    Args:
        config: ``p2p_*``, ``libp2p_*``.
        manager: Who serves peers, and whom peers are backends of.

    Attributes:
        node: The node; None while it is off or could not start.
        lending: What is lent, and how peers are served.
    """

    def __init__(self, config: InferenceServiceConfig, manager: BackendManager) -> None:
        self.node: P2PNode | None = None
        self._config = config
        self._manager = manager
        self.lending = Lending(manager, config)
        self._backends: PeerBackends | None = None
        self._syncing: asyncio.Task[None] | None = None

    async def start(self, trust: TrustStore | None, *, lasting: bool) -> str:
        """Starts the node.

        Args:
            trust: Where it is kept who is trusted; in memory when absent.
            lasting: Whether it is the same node after the next start, so that peers know it again.

        Returns:
            Where it is, in words.

        Raises:
            BackendFailed: It cannot start; the message says why and what to do.
            BadRequest: A setting is wrong.
            StoreError: It cannot be read who is trusted.
        """
        config, manager = self._config, self._manager
        lending = self.lending
        node = P2PNode(
            settings_of(config, lasting=lasting),
            serve=lending.serve,
            trust=trust or MemoryTrust(),
            capabilities=lending.offer,
            load=lending.load,
            instance_id=manager.instance_id,
        )
        await node.start()
        backends = PeerBackends(node, manager)
        try:
            await backends.start()
        except BaseException:
            await node.stop()
            raise
        self.node, self._backends = node, backends
        self._syncing = asyncio.create_task(self._sync(node), name="uia-peer-trust")
        if config.p2p_mode == "open":
            log.warning(
                "p2p_mode=open: whoever finds the network %r may use what is lent", config.p2p_network
            )
        listening = ", ".join(config.p2p_listen)
        return f"{node.peer_id} in the network {config.p2p_network!r}, {config.p2p_mode}, at {listening}"

    async def stop(self) -> None:
        """Leaves the network; requests of peers, and ours to them, end."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
        node, self.node = self.node, None
        backends, self._backends = self._backends, None
        try:
            if backends is not None:
                await backends.stop()
        finally:
            if node is not None:
                await node.stop()

    def require(self) -> P2PNode:
        """The node.

        Raises:
            NoBackendAvailable: There is none.
        """
        if self.node is None:
            raise NoBackendAvailable(
                "this service is in no network of peers: set enable_libp2p=True (LIBP2P_ENABLE=true) and "
                "start it again; GET /ready says what else is in the way"
            )
        return self.node

    def report(self) -> dict[str, Any]:
        """This node, the peers it knows and the invites that are open, as ``GET /peers`` lists them."""
        node = self.node
        if node is None:
            return {"node": None, "peers": [], "invites": []}
        return {
            "node": {
                "peer_id": node.peer_id,
                "instance_id": self._manager.instance_id,
                "mode": node.mode,
                "network": self._config.p2p_network,
                "addresses": list(node.addresses),
                "lends": [model.name for model in self.lending.offer().models],
            },
            "peers": [self._told(info) for info in node.peers],
            "invites": [_open_invite(invite) for invite in node.invites],
        }

    async def trust(self, peer_id: str, terms: Terms, addresses: Iterable[str] = ()) -> dict[str, Any]:
        """Trusts a peer, or changes what is agreed with it.

        Args:
            peer_id: Its peer id.
            terms: What is agreed.
            addresses: Where it is, as multiaddrs.

        Returns:
            What is known of it.

        Raises:
            BadRequest: No peer id, or a bad field.
            StoreError: It could not be kept; nothing has changed then.
        """
        node = self.require()
        before = node.peer(peer_id)
        quota = terms.quota(before.quota if before is not None and before.trusted else None)
        await node.trust(peer_id, terms.name, quota, tuple(addresses), ours=terms.ours)
        return self._told(_known(node, peer_id))

    async def revoke(self, peer_id: str) -> bool:
        """Ends the trust in a peer at once, with all it has under way; False if there was none.

        Raises:
            StoreError: It could not be written.
        """
        return await self.require().revoke(peer_id)

    async def invite(self, terms: Terms, expires_in: float | None = None) -> dict[str, Any]:
        """Makes a link that lets one peer in, once.

        Args:
            terms: What is agreed with whoever comes by it.
            expires_in: Seconds until it is of no use; a day when absent.

        Returns:
            ``id``, ``link`` (the only time it is shown) and ``expires_at``.

        Raises:
            BadRequest: A bad field.
            StoreError: It could not be kept.
        """
        seconds = INVITE_S if expires_in is None else expires_in
        if not 0 < seconds <= LONGEST_INVITE_S:
            raise BadRequest(
                f"expires_in must be seconds above 0 and at most {LONGEST_INVITE_S:.0f}", param="expires_in"
            )
        made: Invitation = await self.require().invite(
            terms.name or "", terms.quota(), seconds, ours=bool(terms.ours)
        )
        return {"id": made.id, "link": made.link, "expires_at": made.expires_at}

    async def withdraw(self, invite_id: str) -> bool:
        """Ends an open invite; False if there was none.

        Raises:
            StoreError: It could not be written.
        """
        return await self.require().withdraw(invite_id)

    async def accept(self, link: str, *, lend: bool = False, ours: bool = False) -> dict[str, Any]:
        """Uses an invite: the peer that made it is trusted and connected to.

        Args:
            link: The link.
            lend: Whether that peer may use what is lent here, in return.
            ours: Whether it is a machine of ours.

        Returns:
            What is known of the peer.

        Raises:
            BadRequest: No link of an invite, or one of another network.
            NotAllowed: It was used or withdrawn, or is over.
            BackendFailed: The peer cannot be reached.
        """
        info = await self.require().accept_invite(link, quota=None if lend else NOTHING, ours=ours)
        return self._told(info)

    def _told(self, info: PeerInfo) -> dict[str, Any]:
        backend_id = backend_id_of(info.peer_id)
        there = self._manager.get_backend(backend_id) is not None
        return {**info.to_dict(), "backend_id": backend_id if there else None}

    async def _sync(self, node: P2PNode) -> None:
        """Takes in what other servers on the same store have changed."""
        failing = False
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await node.reload_trust()
                failing = False
            except InferenceError as error:
                # Said once: what keeps the store from being read may last.
                if not failing:
                    log.warning("who is trusted cannot be brought up to date: %s", error.message)
                failing = True
            except Exception:
                log.exception("who is trusted cannot be brought up to date")


def settings_of(config: InferenceServiceConfig, *, lasting: bool) -> P2PConfig:
    """The node's settings.

    Args:
        config: The service's.
        lasting: Whether the node has a key that outlives it, where no path of one is set.

    Raises:
        BadRequest: One is wrong.
    """
    path = Path(config.p2p_key_path).expanduser() if config.p2p_key_path else None
    return P2PConfig(
        mode=config.p2p_mode,
        network=config.p2p_network,
        listen=tuple(config.p2p_listen),
        key_path=path or (default_key_path() if lasting else None),
        bootstrap_peers=tuple(config.libp2p_bootstrap_peers),
        enable_mdns=config.libp2p_enable_mdns,
        discovery_interval=config.libp2p_discovery_interval,
    )


def default_key_path() -> Path:
    """Where the key is when no setting says otherwise: in Jupyter's data folder."""
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "uia_lab" / "p2p.key"


def _known(node: P2PNode, peer_id: str) -> PeerInfo:
    info = node.peer(peer_id)
    if info is None:
        raise BadRequest(f"there is no peer {peer_id!r}", param="id")
    return info


def _open_invite(invite: Invite) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(invite)
    del plain["digest"]
    return plain
