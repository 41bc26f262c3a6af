"""What looks for peers inside the trio thread: rendezvous on bootstrap nodes, and the DHT in open mode."""

from typing import TYPE_CHECKING

import trio

from uia_lab.p2p.rendezvous import Rendezvous
from uia_lab.p2p.settings import P2PConfig

if TYPE_CHECKING:
    from uia_lab.p2p.hub import Hub


class Discovery:
    """Runs beside the node for as long as it does.

    Args:
        config: The node's settings.
    """

    def __init__(self, config: P2PConfig) -> None:
        self._config = config

    async def run(self, hub: "Hub") -> None:
        """Looks until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Rendezvous(self._config, hub).run)
