"""Who may come in: the allow-list by peer id, and invitations that open once."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from uia_lab.domain.errors import BadRequest, NotAllowed
from uia_lab.domain.peers import Invite, Quota, TrustedPeer

MOST_INVITES = 256
MOST_ADDRESSES = 16


class TrustStore(Protocol):
    """Where the allow-list and the open invitations outlive the process; called on the asyncio loop.

    Each method is done when what it says is on the disk.

    Raises:
        StoreError: It could not be read or written; then nothing has changed.
    """

    async def load(self) -> tuple[list[TrustedPeer], list[Invite]]:
        """All trusted peers and all open invitations."""

    async def save_peer(self, peer: TrustedPeer) -> None:
        """Keeps a trusted peer; one of the same id is replaced."""

    async def move_peer(self, peer_id: str, addresses: tuple[str, ...]) -> bool:
        """Keeps where a trusted peer is; False, and nothing happens, where it is not trusted any more."""

    async def remove_peer(self, peer_id: str) -> None:
        """Forgets a trusted peer; nothing happens where there was none."""

    async def save_invite(self, invite: Invite) -> None:
        """Keeps an open invitation."""

    async def remove_invite(self, invite_id: str) -> bool:
        """Forgets an invitation, used or withdrawn; False if there was none, so that one opens only once."""


class MemoryTrust:
    """A trust store that ends with the process."""

    def __init__(self) -> None:
        self._peers: dict[str, TrustedPeer] = {}
        self._invites: dict[str, Invite] = {}

    async def load(self) -> tuple[list[TrustedPeer], list[Invite]]:
        """What was kept so far."""
        return list(self._peers.values()), list(self._invites.values())

    async def save_peer(self, peer: TrustedPeer) -> None:
        """Keeps a trusted peer."""
        self._peers[peer.peer_id] = peer

    async def move_peer(self, peer_id: str, addresses: tuple[str, ...]) -> bool:
        """Keeps where a trusted peer is."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            self._peers[peer_id] = msgspec.structs.replace(peer, addresses=addresses)
        return peer is not None

    async def remove_peer(self, peer_id: str) -> None:
        """Forgets a trusted peer."""
        self._peers.pop(peer_id, None)

    async def save_invite(self, invite: Invite) -> None:
        """Keeps an open invitation."""
        self._invites[invite.id] = invite

    async def remove_invite(self, invite_id: str) -> bool:
        """Forgets an invitation."""
        return self._invites.pop(invite_id, None) is not None


class Trust:
    """The allow-list and the open invitations as they are in force.

    Changed on the asyncio loop only, after the store has them; read from any thread.

    Args:
        store: Where they are kept.
        clock: Seconds since the epoch.
    """

    def __init__(self, store: TrustStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._changing = asyncio.Lock()
        # Replaced as a whole at each change: whoever reads in another thread sees one or the other.
        self._peers: dict[str, TrustedPeer] = {}
        self._invites: dict[str, Invite] = {}

    @property
    def peers(self) -> dict[str, TrustedPeer]:
        """Trusted peers by id; not to be changed."""
        return self._peers

    @property
    def invites(self) -> list[Invite]:
        """Invitations that are still open."""
        now = self._clock()
        return [invite for invite in self._invites.values() if invite.expires_at > now]

    def trusts(self, peer_id: str) -> bool:
        """Whether a peer is on the allow-list."""
        return peer_id in self._peers

    async def load(self) -> None:
        """Reads what is kept."""
        async with self._changing:
            peers, invites = await self._store.load()
            self._peers = {peer.peer_id: peer for peer in peers}
            self._invites = {invite.id: invite for invite in invites}

    async def add(
        self,
        peer_id: str,
        name: str | None,
        quota: Quota | None,
        addresses: tuple[str, ...],
        ours: bool | None = None,
    ) -> TrustedPeer:
        """Trusts a peer, or changes what is known of it; None, and no addresses, leave what was."""
        async with self._changing:
            old = self._peers.get(peer_id) or TrustedPeer(peer_id=peer_id, added_at=self._clock())
            peer = msgspec.structs.replace(
                old,
                name=old.name if name is None else name,
                quota=old.quota if quota is None else quota,
                addresses=addresses[:MOST_ADDRESSES] or old.addresses,
                ours=old.ours if ours is None else ours,
            )
            await self._keep(peer)
            return peer

    async def remember(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        """Keeps where a trusted peer was reached; nothing happens for any other."""
        async with self._changing:
            peer = self._peers.get(peer_id)
            known = addresses[:MOST_ADDRESSES]
            if peer is None or not known or peer.addresses == known:
                return
            # Another server on the store may have ended the trust a moment ago: this must not bring it back.
            if await self._store.move_peer(peer_id, known):
                self._peers = {**self._peers, peer_id: msgspec.structs.replace(peer, addresses=known)}

    async def remove(self, peer_id: str) -> bool:
        """Trusts a peer no longer; False if it was not on the list."""
        async with self._changing:
            if peer_id not in self._peers:
                return False
            # In force before it is kept: a store that fails must not keep anybody in.
            self._peers = {known: peer for known, peer in self._peers.items() if known != peer_id}
            await self._store.remove_peer(peer_id)
            return True

    async def invite(
        self, name: str, quota: Quota | None, expires_in_s: float, ours: bool = False
    ) -> tuple[Invite, str]:
        """A new invitation and its secret, which is kept nowhere.

        Raises:
            BadRequest: It would never be open, or too many are.
        """
        if not 0 < expires_in_s <= 366 * 86_400:
            raise BadRequest("an invitation is open for more than 0 seconds and at most a year")
        async with self._changing:
            if len(self.invites) >= MOST_INVITES:
                raise BadRequest(f"{MOST_INVITES} invitations are open already; withdraw some")
            secret = secrets.token_urlsafe(32)
            invite = Invite(
                id=f"invite-{secrets.token_hex(6)}",
                digest=_digest(secret),
                name=name,
                quota=quota or Quota(),
                expires_at=self._clock() + expires_in_s,
                ours=ours,
            )
            await self._store.save_invite(invite)
            self._invites = {**self._invites, invite.id: invite}
            return invite, secret

    async def withdraw(self, invite_id: str) -> bool:
        """Takes an invitation back; False if there was none."""
        async with self._changing:
            known = invite_id in self._invites
            self._invites = {key: item for key, item in self._invites.items() if key != invite_id}
            return await self._store.remove_invite(invite_id) and known

    async def redeem(self, secret: str, peer_id: str, addresses: tuple[str, ...]) -> TrustedPeer:
        """Trusts whoever brings the secret of an open invitation, which opens for nobody after that.

        Raises:
            NotAllowed: There is no such open invitation.
        """
        async with self._changing:
            given, found = _digest(secret), None
            for invite in self.invites:
                if hmac.compare_digest(invite.digest, given):
                    found = invite
            if found is None:
                raise NotAllowed("the invitation was used or withdrawn, or has expired; ask for another")
            self._invites = {key: item for key, item in self._invites.items() if key != found.id}
            # The store decides between two servers on one file.
            if not await self._store.remove_invite(found.id):
                raise NotAllowed("the invitation was used already; ask for another")
            peer = TrustedPeer(
                peer_id=peer_id,
                name=found.name,
                quota=found.quota,
                addresses=addresses[:MOST_ADDRESSES],
                added_at=self._clock(),
                ours=found.ours,
            )
            await self._keep(peer)
            return peer

    async def _keep(self, peer: TrustedPeer) -> None:
        await self._store.save_peer(peer)
        self._peers = {**self._peers, peer.peer_id: peer}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
