"""P2PNode: the libp2p node as asyncio sees it."""

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from uia_lab.domain.errors import BackendFailed, BadRequest, NotAllowed
from uia_lab.domain.events import Event
from uia_lab.domain.peers import (
    Invitation,
    Invite,
    Load,
    Offer,
    PeerInfo,
    PeerState,
    Quota,
    TrustedPeer,
)
from uia_lab.domain.requests import InferenceRequest
from uia_lab.p2p.borrowing import answer
from uia_lab.p2p.changes import Changes
from uia_lab.p2p.invites import Link, link_of
from uia_lab.p2p.key_file import load_or_make
from uia_lab.p2p.mdns import Mdns
from uia_lab.p2p.optional import modules
from uia_lab.p2p.quotas import Quotas
from uia_lab.p2p.serving import Serve, Serving
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.trust import Trust, TrustStore

if TYPE_CHECKING:
    from uia_lab.p2p.hub import Hub
    from uia_lab.p2p.thread import TrioThread

log = logging.getLogger(__name__)

Capabilities: TypeAlias = Callable[[], Offer]

OFFER_S = 1.0
_STOPPED: dict[str, Any] = {
    "state": PeerState.OFFLINE, "reason": "the node is stopped", "connected_at": None, "load": None
}  # fmt: skip


class P2PNode:
    """One node: a libp2p host in a thread of its own, and the bridge to it.

    Belongs to the loop of :meth:`start`; every method is called there. It may be started again after
    :meth:`stop`.

    Args:
        config: Its settings.
        serve: Answers a peer's request with events; called on the loop, and closed (``aclose``) when the peer
            has gone or cancelled. The request has ``principal`` ``peer:<peer id>`` and the ``via`` of its
            way; the quota of the peer has been checked, admission and log are the callee's.
        trust: Keeps the allow-list and the invitations.
        capabilities: Gives what is lent now; called on the loop, often, so it has to be cheap.
        load: Gives how busy this node is; as ``capabilities``.
        instance_id: Id of this service, which goes along so that no request runs in circles.
    """

    def __init__(
        self,
        config: P2PConfig,
        *,
        serve: Serve,
        trust: TrustStore,
        capabilities: Capabilities,
        load: Callable[[], Load] = Load,
        instance_id: str = "",
    ) -> None:
        self._config = config
        self._serve = serve
        self._capabilities = capabilities
        self._load = load
        self._instance_id = instance_id
        self._trust = Trust(trust)
        self._quotas = Quotas()
        self._offer = Offer()
        self._peer_id = ""
        self._infos: dict[str, PeerInfo] = {}
        self._changes = Changes(self._view)
        self._thread: TrioThread | None = None
        self._hub: Hub | None = None
        self._mdns: Mdns | None = None
        self._serving: Serving | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turning = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Whether it is started, and its thread lives."""
        return self._thread is not None and self._thread.alive

    @property
    def mode(self) -> str:
        """``off``, ``private`` or ``open``."""
        return self._config.mode

    @property
    def peer_id(self) -> str:
        """Its id; the hash of its public key. Empty before the first start."""
        return self._peer_id

    @property
    def addresses(self) -> list[str]:
        """Full multiaddrs, with ``/p2p/<id>``, at which it listens; empty while it is stopped."""
        if self._hub is None or not self.running:
            return []
        return [f"{address}/p2p/{self._peer_id}" for address in self._hub.addresses]

    @property
    def peers(self) -> list[PeerInfo]:
        """Snapshots of all known peers: trusted, connected, found and refused ones; in order of finding."""
        return [self._view(peer_id) for peer_id in self._infos]

    @property
    def invites(self) -> list[Invite]:
        """Invitations that are still open."""
        return self._trust.invites

    def peer(self, peer_id: str) -> PeerInfo | None:
        """A snapshot of one peer, or None."""
        return self._view(peer_id) if peer_id in self._infos else None

    async def start(self) -> None:
        """Starts the thread, listens, and begins to look for peers; done when it listens.

        With mode ``off`` nothing is started.

        Raises:
            BackendFailed: libp2p is not installed, an address is taken, or the key cannot be read; the
                message says what to do.
            StoreError: The allow-list could not be read.
        """
        async with self._turning:
            if self.running or self._config.mode == "off":
                return
            if self._thread is not None:
                # It ended by itself: what was left of it goes first.
                await self._end()
            await self._trust.load()
            try:
                await self._begin()
            except BaseException:
                await self._end()
                raise

    async def stop(self) -> None:
        """Ends every request, says goodbye, and ends the thread; nothing is left behind."""
        async with self._turning:
            await self._end()

    def subscribe(self) -> AsyncIterator[PeerInfo]:
        """Each known peer now, and a peer again whenever it changed; close it with ``aclose()``.

        Of several changes of one peer that nobody has read, the newest wins. It ends when the node stops.
        """
        return self._changes.subscribe(list(self._infos))

    async def connect(self, address: str) -> PeerInfo:
        """Dials a peer and says hello; done when it is connected.

        Args:
            address: A full multiaddr, with ``/p2p/<id>``.

        Raises:
            BadRequest: No such address.
            NotAllowed: The peer is not trusted here, or does not trust us.
            BackendFailed: It cannot be reached, or is of another network.
        """
        hub, thread = self._parts()
        from uia_lab.p2p.libp2p_host import parsed

        where, peer_id = parsed(address)
        if peer_id == self._peer_id:
            raise BadRequest("this is the address of this very node", param="address")

        async def connect() -> None:
            hub.table.found(peer_id, "static", (where,))
            await hub.connect(peer_id)

        await thread.call(connect)
        return self._view(peer_id)

    async def disconnect(self, peer_id: str) -> None:
        """Closes the connection to a peer; it stays trusted, and is dialled again in a while."""
        hub, thread = self._parts()
        await thread.call(hub.disconnect, peer_id, "it was disconnected here")

    async def refresh(self, peer_id: str) -> PeerInfo:
        """Pings a peer and asks for its load and offer; connects first where it is known but offline.

        Raises:
            BackendFailed: It cannot be reached.
            NotAllowed: It is not trusted, or does not trust us.
        """
        hub, thread = self._parts()
        self._tell_offer()
        await thread.call(hub.refresh, peer_id)
        return self._view(peer_id)

    def request(self, peer_id: str, request: InferenceRequest) -> AsyncIterator[Event]:
        """Sends a request to a connected peer: ``Started``, chunks, ``Finished``, or an error.

        Closing the iterator cancels the request there. ``via`` is sent with this node's ``instance_id`` at
        its end. An iterator that is not read slows the peer down, and holds a bounded number of chunks.
        It sets no deadline of its own between two events; whoever reads does.

        Raises:
            InferenceError: As the peer gave it; BackendFailed where the peer is not connected, has gone, or
                broke the protocol (an end without ``done`` included).
        """
        return answer(self._parts, peer_id, request, self._instance_id)

    async def invite(
        self,
        name: str = "",
        quota: Quota | None = None,
        expires_in_s: float = 86_400.0,
        ours: bool = False,
    ) -> Invitation:
        """Makes a link that lets one peer in, once.

        Args:
            name: What the peer will be called here.
            quota: What it will be allowed to use; the usual quota when None.
            expires_in_s: Seconds until the link is of no use.
            ours: Whether the peer will be a machine of ours.

        Raises:
            BackendFailed: The node is not running.
            StoreError: The invitation could not be kept.
        """
        self._parts()
        if self._config.mode == "off":
            raise NotAllowed("the p2p node is off; set p2p_mode")
        invite, secret = await self._trust.invite(name, quota, expires_in_s, ours)
        hub, _ = self._parts()
        link = Link(peer=self._peer_id, network=self._config.network, addresses=hub.addresses, secret=secret)
        return Invitation(id=invite.id, link=link.text(), expires_at=invite.expires_at)

    async def withdraw(self, invite_id: str) -> bool:
        """Takes an open invitation back; False if there was none."""
        return await self._trust.withdraw(invite_id)

    async def accept_invite(
        self, text: str, quota: Quota | None = None, *, name: str | None = None, ours: bool | None = None
    ) -> PeerInfo:
        """Trusts the peer that wrote a link, connects to it and uses the invitation.

        Args:
            text: The link.
            quota: What the peer may use here; the usual quota when None.
            name: What it is called here.
            ours: Whether it is a machine of ours.

        Raises:
            BadRequest: No link of an invitation, or one of another network.
            NotAllowed: It was used or withdrawn, or has expired.
            BackendFailed: The peer cannot be reached.
        """
        link = link_of(text)
        hub, thread = self._parts()
        if link.network != self._config.network:
            raise BadRequest(
                f"the invitation is for the network {link.network!r:.80}; this node is in "
                f"{self._config.network!r} (p2p_network)",
                param="link",
            )
        if link.peer == self._peer_id:
            raise BadRequest("this invitation was written by this very node", param="link")
        known = self._trust.trusts(link.peer)
        self._checked(link.peer)
        await self._trust.add(link.peer, name, quota, link.addresses, ours)

        async def connect() -> None:
            hub.table.found(link.peer, "invite", link.addresses)
            await hub.connect(link.peer, link.secret)
            hub.dialer.consider(link.peer)

        try:
            await thread.call(connect)
        except NotAllowed:
            if not known:
                # It let nobody in: nothing is left of it.
                await self.revoke(link.peer)
            raise
        return self._view(link.peer)

    async def trust(
        self,
        peer_id: str,
        name: str | None = None,
        quota: Quota | None = None,
        addresses: tuple[str, ...] = (),
        ours: bool | None = None,
    ) -> TrustedPeer:
        """Puts a peer on the allow-list, or changes its name, quota or addresses; None leaves what was.

        Args:
            peer_id: Its id.
            name: What it is called here.
            quota: What it may use here.
            addresses: Where it is, as multiaddrs without ``/p2p/<id>``.
            ours: Whether it is a machine of ours.

        Raises:
            BadRequest: No peer id.
            StoreError: It could not be kept; nothing has changed then.
        """
        await asyncio.to_thread(modules)
        peer_id = self._checked(peer_id)
        peer = await self._trust.add(peer_id, name, quota, addresses, ours)
        await self._consider(peer)
        return peer

    async def reload_trust(self) -> None:
        """Takes in what others have changed in the trust store, as if it had been changed here.

        Raises:
            StoreError: It could not be read; nothing has changed then.
        """
        before = self._trust.peers
        await self._trust.load()
        after = self._trust.peers
        for peer_id in before.keys() - after.keys():
            await self._end_trust(peer_id)
        for peer_id, peer in after.items():
            if before.get(peer_id) != peer:
                await self._consider(peer)

    async def revoke(self, peer_id: str) -> bool:
        """Takes a peer off the allow-list, ends its requests and closes the connection.

        Returns:
            False if it was not on it.
        """
        try:
            return await self._trust.remove(peer_id)
        finally:  # also where that could not be kept
            await self._end_trust(peer_id)

    async def _consider(self, peer: TrustedPeer) -> None:
        """A peer is trusted, or something about it has changed."""
        if self.running:
            hub, thread = self._parts()

            async def consider() -> None:
                hub.table.found(peer.peer_id, "remembered", peer.addresses)
                hub.dialer.consider(peer.peer_id)

            await thread.call(consider)
        self._changes.publish(peer.peer_id)

    async def _end_trust(self, peer_id: str) -> None:
        """A peer is trusted no longer: what it has under way here ends, and so does the connection."""
        if self._serving is not None:
            self._serving.cancel_peer(peer_id)
        if self.running:
            hub, thread = self._parts()
            await thread.call(hub.disconnect, peer_id, "it is not trusted any more")
        self._changes.publish(peer_id)

    def peer_changed(self, peer_id: str, info: PeerInfo | None) -> None:
        """For the thread: a peer has changed, or is forgotten."""
        if info is None:
            self._infos.pop(peer_id, None)
        else:
            self._infos[peer_id] = info
            self._changes.publish(peer_id)

    def remember(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        """For the thread: a peer was reached at these addresses."""
        if self._trust.trusts(peer_id):
            self._soon(self._trust.remember(peer_id, addresses))

    async def _begin(self) -> None:
        # Importing libp2p takes a second or two.
        hub_module, thread_module = await asyncio.to_thread(modules)
        seed = await asyncio.to_thread(load_or_make, self._config.key_path)
        self._serving = serving = Serving(
            self._serve, self._quotas, self._quota_of, lambda: self._offer, self._instance_id
        )
        self._infos.clear()
        self._thread = thread = thread_module.TrioThread(asyncio.get_running_loop())
        self._hub = hub = hub_module.Hub(
            self._config, seed, thread, self, serving, self._trust, self._instance_id
        )
        self._peer_id = hub.peer_id
        self._tell_offer()
        discovery = importlib.import_module("uia_lab.p2p.discovery")
        await thread.start(lambda ready: hub.run(ready, discovery.Discovery(self._config).run))
        if self._config.enable_mdns:
            self._mdns = Mdns(self._config.network, self._peer_id, hub.addresses, self._found_near)
            self._mdns.start()
        self._soon(self._follow(thread))

    async def _end(self) -> None:
        await self._end_tasks()
        mdns, self._mdns = self._mdns, None
        serving, self._serving = self._serving, None
        if mdns is not None:
            mdns.stop()
        if serving is not None:
            await serving.close()
        thread, self._thread, self._hub = self._thread, None, None
        try:
            if thread is not None:
                await thread.stop()
        finally:
            for peer_id, info in self._infos.items():
                if info.state in (PeerState.CONNECTED, PeerState.CONNECTING):
                    self._infos[peer_id] = msgspec.structs.replace(info, **_STOPPED)
            self._changes.close()
            await self._end_tasks()
            if mdns is not None:
                await mdns.ended()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, thread: "TrioThread") -> None:
        """Keeps the thread informed of what is lent and how busy we are, for as long as it lives."""
        while thread.alive:
            try:
                self._tell_offer()
            except Exception:
                # The callee's: the next look may go better, and a node must not go silent for it.
                log.exception("what is lent could not be told to the peers")
            await thread.ended(OFFER_S)
        if thread.error is not None:
            log.error("the p2p node has ended", exc_info=thread.error)
        for peer_id, info in self._infos.items():
            self._infos[peer_id] = msgspec.structs.replace(
                info, state=PeerState.OFFLINE, reason="the p2p node has ended by an error"
            )
            self._changes.publish(peer_id)

    def _tell_offer(self) -> None:
        hub, thread = self._hub, self._thread
        if hub is None or thread is None:
            return
        hub.load = self._load()
        offer = self._capabilities()
        if offer != self._offer or hub.offer != offer:
            self._offer = offer
            if not thread.post(hub.announce, offer):
                hub.offer = offer

    def _found_near(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        """From the thread of mDNS."""
        hub, thread = self._hub, self._thread
        if hub is not None and thread is not None:
            thread.post(hub.found, peer_id, "mdns", addresses)

    def _quota_of(self, peer_id: str) -> Quota | None:
        peer = self._trust.peers.get(peer_id)
        if peer is not None:
            return peer.quota
        return self._config.open_quota if self._config.mode == "open" else None

    def _view(self, peer_id: str) -> PeerInfo:
        info = self._infos.get(peer_id) or PeerInfo(peer_id=peer_id)
        peer = self._trust.peers.get(peer_id)
        return msgspec.structs.replace(
            info,
            name=peer.name if peer is not None and peer.name else info.name,
            trusted=peer is not None,
            ours=peer is not None and peer.ours,
            serving=self._quotas.running(peer_id),
            quota=self._quota_of(peer_id),
        )

    def _parts(self) -> "tuple[Hub, TrioThread]":
        if self._hub is None or self._thread is None or not self._thread.alive:
            raise BackendFailed("the p2p node is stopped; start it first (enable_libp2p)")
        return self._hub, self._thread

    @staticmethod
    def _checked(peer_id: str) -> str:
        from uia_lab.p2p.libp2p_host import is_peer_id

        if not is_peer_id(peer_id):
            raise BadRequest(f"{peer_id!r:.200} is no peer id; one looks like 12D3KooW...", param="peer_id")
        return peer_id

    def _soon(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="uia-p2p")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
