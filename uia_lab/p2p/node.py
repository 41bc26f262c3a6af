"""P2PNode: the libp2p node as asyncio sees it."""

from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from uia_lab.domain.events import Event
from uia_lab.domain.peers import Invitation, Invite, Load, Offer, PeerInfo, Quota, TrustedPeer
from uia_lab.domain.requests import InferenceRequest
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.trust import TrustStore

Serve: TypeAlias = Callable[[InferenceRequest], AsyncIterator[Event]]
Capabilities: TypeAlias = Callable[[], Offer]


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
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether it is started, and its thread lives."""
        raise NotImplementedError

    @property
    def mode(self) -> str:
        """``off``, ``private`` or ``open``."""
        raise NotImplementedError

    @property
    def peer_id(self) -> str:
        """Its id; the hash of its public key. Empty before the first start."""
        raise NotImplementedError

    @property
    def addresses(self) -> list[str]:
        """Full multiaddrs, with ``/p2p/<id>``, at which it listens; empty while it is stopped."""
        raise NotImplementedError

    @property
    def peers(self) -> list[PeerInfo]:
        """Snapshots of all known peers: trusted, connected, found and refused ones; in order of finding."""
        raise NotImplementedError

    @property
    def invites(self) -> list[Invite]:
        """Invitations that are still open."""
        raise NotImplementedError

    def peer(self, peer_id: str) -> PeerInfo | None:
        """A snapshot of one peer, or None."""
        raise NotImplementedError

    async def start(self) -> None:
        """Starts the thread, listens, and begins to look for peers; done when it listens.

        With mode ``off`` nothing is started.

        Raises:
            BackendFailed: libp2p is not installed, an address is taken, or the key cannot be read; the
                message says what to do.
            StoreError: The allow-list could not be read.
        """
        raise NotImplementedError

    async def stop(self) -> None:
        """Ends every request, says goodbye, and ends the thread; nothing is left behind."""
        raise NotImplementedError

    def subscribe(self) -> AsyncIterator[PeerInfo]:
        """Each known peer now, and a peer again whenever it changed; close it with ``aclose()``.

        Of several changes of one peer that nobody has read, the newest wins. It ends when the node stops.
        """
        raise NotImplementedError

    async def connect(self, address: str) -> PeerInfo:
        """Dials a peer and says hello; done when it is connected.

        Args:
            address: A full multiaddr, with ``/p2p/<id>``.

        Raises:
            BadRequest: No such address.
            NotAllowed: The peer is not trusted here, or does not trust us.
            BackendFailed: It cannot be reached, or is of another network.
        """
        raise NotImplementedError

    async def disconnect(self, peer_id: str) -> None:
        """Closes the connection to a peer; it stays trusted, and is dialled again in a while."""
        raise NotImplementedError

    async def refresh(self, peer_id: str) -> PeerInfo:
        """Pings a peer and asks for its load and offer; connects first where it is known but offline.

        Raises:
            BackendFailed: It cannot be reached.
            NotAllowed: It is not trusted, or does not trust us.
        """
        raise NotImplementedError

    def request(self, peer_id: str, request: InferenceRequest) -> AsyncIterator[Event]:
        """Sends a request to a connected peer: ``Started``, chunks, ``Finished``, or an error.

        Closing the iterator cancels the request there. ``via`` is sent with this node's ``instance_id`` at
        its end. An iterator that is not read slows the peer down, and holds a bounded number of chunks.
        It sets no deadline of its own between two events; whoever reads does.

        Raises:
            InferenceError: As the peer gave it; BackendFailed where the peer is not connected, has gone, or
                broke the protocol (an end without ``done`` included).
        """
        raise NotImplementedError

    async def invite(
        self, name: str = "", quota: Quota | None = None, expires_in_s: float = 86_400.0
    ) -> Invitation:
        """Makes a link that lets one peer in, once.

        Args:
            name: What the peer will be called here.
            quota: What it will be allowed to use; the usual quota when None.
            expires_in_s: Seconds until the link is of no use.

        Raises:
            BackendFailed: The node is not running.
            StoreError: The invitation could not be kept.
        """
        raise NotImplementedError

    async def withdraw(self, invite_id: str) -> bool:
        """Takes an open invitation back; False if there was none."""
        raise NotImplementedError

    async def accept_invite(self, link: str) -> PeerInfo:
        """Trusts the peer that wrote a link, connects to it and uses the invitation.

        Raises:
            BadRequest: No link of an invitation, or one of another network.
            NotAllowed: It was used or withdrawn, or has expired.
            BackendFailed: The peer cannot be reached.
        """
        raise NotImplementedError

    async def trust(
        self,
        peer_id: str,
        name: str | None = None,
        quota: Quota | None = None,
        addresses: tuple[str, ...] = (),
    ) -> TrustedPeer:
        """Puts a peer on the allow-list, or changes its name, quota or addresses; None leaves what was.

        Raises:
            BadRequest: No peer id.
            StoreError: It could not be kept; nothing has changed then.
        """
        raise NotImplementedError

    async def revoke(self, peer_id: str) -> bool:
        """Takes a peer off the allow-list, ends its requests and closes the connection.

        Returns:
            False if it was not on it.
        """
        raise NotImplementedError
