"""What keeps a peer's streams and claims from doing harm, and what the trio half asks of the loop."""

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from uia_lab.domain.peers import PeerInfo
from uia_lab.p2p.peer_table import MOST_ADDRESSES

log = logging.getLogger(__name__)


class Loop(Protocol):
    """What the node does on the asyncio loop for its trio half; each is called there."""

    def peer_changed(self, peer_id: str, info: PeerInfo | None) -> None:
        """A peer has changed, or is forgotten."""

    def remember(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        """A peer was reached at these addresses."""


def contained(handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """A handler that fails for its own stream only; libp2p would end the connections of everybody."""

    async def handle(raw: Any) -> None:
        try:
            await handler(raw)
        except Exception:
            log.exception("unexpected error on a stream of a peer")
            await raw.reset()

    return handle


def credible(addresses: tuple[str, ...], connection: Any, *, trusted: bool) -> tuple[str, ...]:
    """Of the addresses that a peer claims those that are dialled later.

    A stranger's are believed where it came from only: it must not send us elsewhere.

    Args:
        addresses: What it claims.
        connection: The connection it came by.
        trusted: Whether it is on the allow-list.
    """
    remote = connection.muxed_conn.get_remote_address()
    origin = remote[0] if remote is not None else ""
    found = []
    for address in addresses[:MOST_ADDRESSES]:
        parts = address.split("/")
        if len(address) > 256 or len(parts) != 5 or parts[3] != "tcp" or not parts[4].isdecimal():
            continue
        try:
            host = ipaddress.ip_address(parts[2])
        except ValueError:
            continue
        loopback = host.is_loopback and origin != parts[2]
        if parts[2] == origin or (trusted and not loopback and not host.is_unspecified):
            found.append(address)
    return tuple(found)
