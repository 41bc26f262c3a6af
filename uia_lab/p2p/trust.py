"""Who may come in: the allow-list by peer id, and invitations that open once."""

from typing import Protocol

from uia_lab.domain.peers import Invite, TrustedPeer


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

    async def remove_peer(self, peer_id: str) -> None:
        """Forgets a trusted peer."""
        self._peers.pop(peer_id, None)

    async def save_invite(self, invite: Invite) -> None:
        """Keeps an open invitation."""
        self._invites[invite.id] = invite

    async def remove_invite(self, invite_id: str) -> bool:
        """Forgets an invitation."""
        return self._invites.pop(invite_id, None) is not None
