"""The peers of the libp2p network: seen by readers, trusted and invited by administrators."""

from typing import ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN
from uia_lab.dialects.fields import Fields
from uia_lab.domain.errors import BadRequest
from uia_lab.doors.base import Door
from uia_lab.peer_network import LONGEST_INVITE_S, Terms

_TERMS = Terms.__struct_fields__
_LONGEST_LINK = 8192


class PeersDoor(Door):
    """``GET /peers``."""

    def get(self) -> None:
        """This node, the peers it knows and, for administrators, the invites that are open."""
        report = self.service.peers.report()
        self.answer(report if self.principal.allows(ADMIN) else report | {"invites": []})


class TrustDoor(Door):
    """``POST|DELETE /peers/{id}/trust``.

    What is agreed is ``{name?, models?, max_concurrent?, tokens_per_minute?, ours?, addresses?}``.
    """

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def post(self, peer_id: str) -> None:
        """Trusts a peer, or changes what is agreed with it; what is absent stays as it was."""
        fields = Fields(self.json_body())
        fields.only((*_TERMS, "addresses"))
        addresses = fields.strings("addresses") or ()
        self.answer(await self.service.peers.trust(peer_id, Terms.of(fields.values), addresses))

    async def delete(self, peer_id: str) -> None:
        """Trusts a peer no more: its requests and its connection end."""
        if not await self.service.peers.revoke(peer_id):
            raise HTTPError(404, "no such peer is trusted")
        self.answer({"id": peer_id, "revoked": True})


class InvitesDoor(Door):
    """``POST /peers/invites``.

    What is agreed is ``{name?, models?, max_concurrent?, tokens_per_minute?, ours?, expires_in?}``.
    """

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def post(self) -> None:
        """Makes a link that lets one peer in, once; this answer is the only time it is shown."""
        fields = Fields(self.json_body())
        fields.only((*_TERMS, "expires_in"))
        expires_in = fields.number("expires_in", 1, LONGEST_INVITE_S)
        self.answer(await self.service.peers.invite(Terms.of(fields.values), expires_in), 201)


class InviteDoor(Door):
    """``DELETE /peers/invites/{id}``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def delete(self, invite_id: str) -> None:
        """Takes an open invite back."""
        if not await self.service.peers.withdraw(invite_id):
            raise HTTPError(404, "no such invite is open")
        self.answer({"id": invite_id, "withdrawn": True})


class AcceptDoor(Door):
    """``POST /peers/accept {link, lend?, ours?}``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def post(self) -> None:
        """Uses an invite: the peer that made it is trusted and connected to."""
        fields = Fields(self.json_body())
        fields.only(("link", "lend", "ours"))
        link = fields.text("link", _LONGEST_LINK)
        if link is None:
            raise BadRequest("link is missing", param="link")
        lend, ours = fields.flag("lend"), fields.flag("ours")
        self.answer(await self.service.peers.accept(link, lend=lend, ours=ours))
