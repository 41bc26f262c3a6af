"""Peers meet at their bootstrap nodes: each says there where it is, and asks who else is there."""

import logging
from typing import TYPE_CHECKING, Any

import trio
from libp2p.discovery.rendezvous.client import RendezvousClient
from libp2p.discovery.rendezvous.config import RENDEZVOUS_PROTOCOL
from libp2p.discovery.rendezvous.service import RendezvousService
from libp2p.peer.id import ID

from uia_lab.p2p.session import Session
from uia_lab.p2p.settings import P2PConfig

if TYPE_CHECKING:
    from uia_lab.p2p.hub import Hub

log = logging.getLogger(__name__)

ASK_S = 5.0
ROUND_S = 60.0
LOOK_S = 0.25
MOST_FOUND = 100


class Rendezvous:
    """Serves as a meeting point for whoever is let in, and meets others at our bootstrap nodes.

    Args:
        config: The node's settings.
        hub: The node.
    """

    def __init__(self, config: P2PConfig, hub: "Hub") -> None:
        self._config = config
        self._hub = hub
        self._namespace = f"uia/{config.network}"

    async def run(self) -> None:
        """Meets until it is cancelled."""
        RendezvousService(self._hub.host)
        handler = self._hub.host.get_mux().handlers[RENDEZVOUS_PROTOCOL]
        self._hub.host.set_stream_handler(RENDEZVOUS_PROTOCOL, self._hub.gated(handler))
        async with trio.open_nursery() as nursery:
            for peer_id in self._hub.bootstrap:
                nursery.start_soon(self._meet, peer_id)

    async def _meet(self, peer_id: str) -> None:
        while True:
            session = self._hub.session(peer_id)
            if session is None:
                await trio.sleep(LOOK_S)
                continue
            await self._ask(session, RendezvousClient(self._hub.host, ID.from_string(peer_id)))
            with trio.move_on_after(min(ROUND_S, self._config.discovery_interval)):
                await session.ended.wait()

    async def _ask(self, session: Session, client: Any) -> None:
        try:
            with trio.fail_after(ASK_S):
                await client.register(self._namespace)
                found, _ = await client.discover(self._namespace, MOST_FOUND)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong there, the next round comes
            log.debug("no meeting at %s: %s", session.words, error)
            return
        for info in found:
            peer_id = str(info.peer_id)
            addresses = (str(address).removesuffix(f"/p2p/{peer_id}") for address in info.addrs)
            self._hub.found(peer_id, "rendezvous", tuple(addresses))
