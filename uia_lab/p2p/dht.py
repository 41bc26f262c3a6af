"""In open mode, providers in the DHT as candidates: who is listed there may be long gone, or lie."""

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import trio
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from uia_lab.p2p.settings import P2PConfig

if TYPE_CHECKING:
    from uia_lab.p2p.hub import Hub

log = logging.getLogger(__name__)

ROUND_S = 60.0
ASK_S = 20.0
MOST_FOUND = 20


class Dht:
    """Lists this node as a provider of its network among the nodes it is connected to, and asks for others.

    Args:
        config: The node's settings.
        hub: The node.
    """

    def __init__(self, config: P2PConfig, hub: "Hub") -> None:
        self._config = config
        self._hub = hub
        # As the hexadecimal form of a multihash of SHA-256, which the DHT takes for a key.
        self._key = f"1220{hashlib.sha256(f'uia/{config.network}'.encode()).hexdigest()}"

    async def run(self) -> None:
        """Looks until it is cancelled; what goes wrong in the DHT, the node does without."""
        host = self._hub.host
        # Values of a DHT can be poisoned: there are none.
        dht = KadDHT(host, DHTMode.SERVER, enable_values=False)
        host.set_stream_handler(PROTOCOL_ID, self._hub.gated(host.get_mux().handlers[PROTOCOL_ID]))
        try:
            async with background_trio_service(dht):
                while True:
                    await self._ask(dht)
                    await trio.sleep(min(ROUND_S, self._config.discovery_interval))
        except* Exception as group:  # noqa: BLE001
            log.info("the DHT has ended: %s", group.exceptions[0])

    async def _ask(self, dht: Any) -> None:
        for info in self._hub.table:
            if info.connected:
                await dht.add_peer(ID.from_string(info.peer_id), skip_server_mode_check=True)
        with trio.move_on_after(ASK_S):
            await dht.provide(self._key)
            for info in await self._providers(dht):
                peer_id = str(info.peer_id)
                addresses = (str(address).removesuffix(f"/p2p/{peer_id}") for address in info.addrs)
                self._hub.found(peer_id, "dht", tuple(addresses))

    async def _providers(self, dht: Any) -> list[Any]:
        """Who is listed, here and at others.

        Whoever has a list of its own asks nobody else: it is put aside while we ask.
        """
        lists, key = dht.provider_store.providers, bytes.fromhex(self._key)
        own = dht.provider_store.get_providers(key)
        aside = lists.pop(key, {})
        try:
            return [*own, *await dht.find_providers(self._key, MOST_FOUND)]
        finally:
            lists[key] = {**lists.get(key, {}), **aside}
