"""The libp2p host: TCP, Noise and yamux only, our key, our limits, and none of its automatic dialling."""

import logging
import os
import socket
from contextlib import closing
from typing import Any

import psutil
import trio
from libp2p import new_swarm
from libp2p.abc import INotifee
from libp2p.crypto.ed25519 import Ed25519PublicKey, create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.rcmgr import new_resource_manager
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr
from multiaddr.exceptions import MultiaddrError

from uia_lab.domain.errors import BackendFailed, BadRequest

MOST_CONNECTIONS = 128
MOST_STREAMS = 64
UPGRADE_S = 5
NEGOTIATE_S = 5


def make_host(seed: bytes) -> BasicHost:
    """A host that listens nowhere yet.

    Args:
        seed: The key, 32 bytes.
    """
    quieten()
    keys = create_new_key_pair(seed)
    swarm = new_swarm(
        key_pair=keys,
        # Named one by one: the usual set lets in plain text, where anybody can claim any peer id.
        sec_opt={NOISE: Noise(keys, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={YAMUX: Yamux},
        transports=[TCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=MOST_CONNECTIONS,
            high_watermark=MOST_CONNECTIONS,
            # At 0 it never dials peers by itself.
            min_connections=0,
            low_watermark=0,
            max_connections_per_peer=4,
            inbound_upgrade_timeout=UPGRADE_S,
            outbound_upgrade_timeout=UPGRADE_S,
            outbound_stream_protocol_negotiation_timeout=NEGOTIATE_S,
            inbound_stream_protocol_negotiation_timeout=NEGOTIATE_S,
        ),
        resource_manager=new_resource_manager(
            enable_metrics=False,
            enable_memory_limits=False,
            enable_memory_pooling=False,
            enable_circuit_breaker=False,
            enable_graceful_degradation=False,
        ),
    )
    host = BasicHost(
        swarm,
        disable_identify_address_discovery=True,
        negotiate_timeout=NEGOTIATE_S,
        addrs_factory=lambda known: [Multiaddr(one) for address in known for one in reachable(address)],
    )
    host.remove_stream_handler(ID_PUSH)
    return host


def quieten() -> None:
    """Keeps libp2p's remarks about each lost connection out of the server's log, unless they are asked for.

    Some of them are written by functions of :mod:`logging` itself, the first of which would set up the root
    logger of a process that has none.
    """
    from libp2p.network.connection import swarm_connection

    logger = logging.getLogger("libp2p")
    if logger.level == logging.NOTSET or logger.level >= logging.WARNING:
        logger.setLevel(logging.CRITICAL)
    if getattr(swarm_connection, "logging", None) is logging:
        swarm_connection.logging = logging.getLogger(swarm_connection.__name__)


def peer_id_of(key: bytes) -> str:
    """The peer id of an Ed25519 public key of 32 bytes.

    Raises:
        ValueError: It is no key.
    """
    try:
        return str(ID.from_pubkey(Ed25519PublicKey.from_bytes(key)))
    except Exception as error:
        raise ValueError("not an Ed25519 public key") from error


def parsed(address: str) -> tuple[str, str]:
    """The transport part and the peer id of a full multiaddr.

    Raises:
        BadRequest: It is none, or not one of TCP.
    """
    try:
        known = Multiaddr(address)
        peer_id = known.value_for_protocol("p2p")
        names = [item.name for item in known.protocols()]
    except (MultiaddrError, ValueError, TypeError, AttributeError, LookupError):
        peer_id, names = None, []
    if not peer_id or "tcp" not in names or names[-1] != "p2p" or names.count("p2p") != 1:
        raise BadRequest(
            f"{address!r:.200} is no address of a peer; one looks like /ip4/192.0.2.7/tcp/4001/p2p/12D3...",
            param="address",
        )
    return address[: address.rindex("/p2p/")] or address, peer_id


def is_peer_id(peer_id: str) -> bool:
    """Whether a text is a peer id."""
    try:
        return isinstance(peer_id, str) and len(peer_id) <= 128 and str(ID.from_string(peer_id)) == peer_id
    except Exception:  # noqa: BLE001 - it decodes in many ways, and fails in as many
        return False


def reachable(address: Any) -> list[str]:
    """Where others reach a listening address: one of all interfaces becomes one of each."""
    text = str(address)
    for family, anything, own in (("ip4", "0.0.0.0", socket.AF_INET), ("ip6", "::", socket.AF_INET6)):  # noqa: S104
        prefix = f"/{family}/{anything}/"
        if text.startswith(prefix):
            rest = text.removeprefix(prefix)
            found = [
                item.address
                for items in psutil.net_if_addrs().values()
                for item in items
                if item.family == own and "%" not in item.address
            ]
            outward = [host for host in found if host not in ("127.0.0.1", "::1")]
            return [f"/{family}/{host}/{rest}" for host in outward or found]
    return [text]


async def listen(host: BasicHost, addresses: tuple[str, ...]) -> None:
    """Listens at every address.

    Raises:
        BadRequest: One is no address of TCP.
        BackendFailed: One is taken, or not of this machine.
    """
    wanted = []
    for address in addresses:
        try:
            known = Multiaddr(address)
            names = [item.name for item in known.protocols()]
        except (MultiaddrError, ValueError, TypeError, LookupError):
            names = []
        if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
            raise BadRequest(
                f"{address!r:.200} is nothing to listen at; one looks like /ip4/0.0.0.0/tcp/4001",
                param="p2p_listen",
            )
        _check_free(known, address)
        wanted.append(known)
    await host.get_network().listen(*wanted)
    if len(host.get_network().listeners) < len(set(addresses)):
        raise BackendFailed(f"cannot listen at all of {', '.join(addresses)}")


def _check_free(known: Multiaddr, address: str) -> None:
    """libp2p shares ports: without this a second node at the same one would take half of the connections."""
    family = "ip4" if known.protocols()[0].name == "ip4" else "ip6"
    where = known.value_for_protocol(family), int(known.value_for_protocol("tcp"))
    own = socket.AF_INET if family == "ip4" else socket.AF_INET6
    with closing(socket.socket(own, socket.SOCK_STREAM)) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise BackendFailed(
                f"cannot listen at {address}: {error.strerror}; set p2p_listen to a free port, or to port 0"
            ) from error


class Notices(INotifee):  # type: ignore[misc]
    """Hears of connections and streams, and passes on what a node wants to know.

    Args:
        connected: Told of each new connection; it does not wait.
        disconnected: Told of each that has ended; it does not wait.
    """

    def __init__(self, connected: Any, disconnected: Any) -> None:
        self._connected = connected
        self._disconnected = disconnected

    async def connected(self, network: Any, conn: Any) -> None:  # noqa: ARG002
        """A connection is there."""
        self._connected(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:  # noqa: ARG002
        """A connection has ended."""
        self._disconnected(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None:  # noqa: ARG002
        """A stream was opened: a connection has so many at once, those that ask for nothing yet included."""
        connection = stream.swarm_conn
        if connection is not None and len(connection.streams) > MOST_STREAMS:
            await stream.reset()

    async def closed_stream(self, network: Any, stream: Any) -> None:
        """A stream has ended."""

    async def listen(self, network: Any, multiaddr: Any) -> None:
        """It listens."""

    async def listen_close(self, network: Any, multiaddr: Any) -> None:
        """It listens no longer."""


async def dial(host: BasicHost, address: str, peer_id: str, seconds: float) -> Any:
    """A connection to a peer at one address, within so many seconds.

    By the address: dialling by peer waits 250 ms for a second one, leaves loopback out where there are
    others, and refuses for a minute whoever could not be reached once.

    Raises:
        BackendFailed: It cannot be reached there.
    """
    try:
        with trio.fail_after(seconds):
            return await host.get_network().dial_addr(Multiaddr(address), ID.from_string(peer_id))
    except trio.TooSlowError:
        raise BackendFailed(f"nobody answers at {address} within {seconds:g} s") from None
    except Exception as error:
        raise BackendFailed(f"nobody can be reached at {address} ({_root(error)})") from error


def _root(error: BaseException) -> str:
    """The innermost reason of an error of libp2p, in short."""
    while (inner := error.__cause__) is not None:
        error = inner
    return f"{str(error) or type(error).__name__:.200}"
