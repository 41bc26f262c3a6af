"""The link of an invitation: who wrote it, where it is, and the secret that opens once."""

import base64
import binascii

import msgspec

from uia_lab.domain.errors import BadRequest

PREFIX = "uia-peer:"
LONGEST = 8192


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What a link says.

    Args:
        peer: Id of the peer that wrote it.
        network: Its network.
        addresses: Where it is, as multiaddrs without ``/p2p/<id>``.
        secret: What opens once.
    """

    peer: str
    network: str
    addresses: tuple[str, ...]
    secret: str

    def __repr__(self) -> str:
        return f"Link(peer={self.peer!r}, network={self.network!r})"

    def text(self) -> str:
        """The link to hand over."""
        return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


def link_of(text: str) -> Link:
    """What a link says.

    Raises:
        BadRequest: It is no link of an invitation.
    """
    plain = "".join(text.split()) if isinstance(text, str) else ""
    if plain.startswith(PREFIX) and len(plain) <= LONGEST:
        body = plain.removeprefix(PREFIX)
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            return msgspec.json.decode(raw, type=Link)
        except (binascii.Error, msgspec.MsgspecError, ValueError):
            pass
    raise BadRequest(
        f"this is no link of an invitation; one begins with {PREFIX} and is copied as a whole", param="link"
    )
