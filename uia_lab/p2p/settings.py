"""What a node is told: who may come in, where it listens, where it looks for peers."""

from dataclasses import dataclass, field
from pathlib import Path

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.peers import Quota

MODES = ("off", "private", "open")
LISTEN = ("/ip4/127.0.0.1/tcp/0",)


@dataclass(frozen=True, slots=True)
class P2PConfig:
    """Settings of one node.

    Args:
        mode: ``off`` has no network, ``private`` lets in peers on the allow-list and holders of an invite,
            ``open`` lets in anybody of the network.
        network: Name of the network; peers of another one are refused.
        listen: Multiaddrs of TCP to listen at; port 0 takes a free one.
        key_path: File of the node's Ed25519 key, made where absent; None for a key that ends with the node.
        bootstrap_peers: Full multiaddrs of peers that are dialled for ever, with back-off.
        static_peers: Full multiaddrs of peers that are dialled as well, and asked for nothing else.
        enable_mdns: Whether it looks for peers on the local network, and is found there.
        enable_dht: Whether, in open mode, providers in the DHT are candidates.
        discovery_interval: Seconds between two rounds of looking, at most.
        open_quota: In open mode, what a peer that is not on the allow-list may use.

    Raises:
        BadRequest: A bad value; ``param`` names it.
    """

    mode: str = "private"
    network: str = "default"
    listen: tuple[str, ...] = LISTEN
    key_path: Path | None = None
    bootstrap_peers: tuple[str, ...] = ()
    static_peers: tuple[str, ...] = ()
    enable_mdns: bool = True
    enable_dht: bool = True
    discovery_interval: float = 60.0
    open_quota: Quota = field(default_factory=lambda: Quota(max_concurrent=1, tokens_per_minute=2_000))

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadRequest(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}", param="mode")
        if not self.network or len(self.network) > 128:
            raise BadRequest("network must be a name of 1 to 128 characters", param="network")
        if not self.listen:
            raise BadRequest("listen needs at least one multiaddr of TCP", param="listen")
        if not 0 < self.discovery_interval < 86_400:
            raise BadRequest(
                f"discovery_interval must be seconds within a day, not {self.discovery_interval!r}",
                param="discovery_interval",
            )
