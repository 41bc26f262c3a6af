"""Peers of the libp2p network: who they are, what they offer, what they may use here."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

PEER_PRINCIPAL = "peer:"


class PeerState(StrEnum):
    """How a peer is; one counts as connected after connect and hello, and not before."""

    FOUND = "found"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    OFFLINE = "offline"
    REFUSED = "refused"


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer may use of this node; None does not limit.

    Args:
        models: Names, or patterns such as ``qwen*``, of models it may ask for; None permits all lent ones.
        max_concurrent: Requests at once.
        tokens_per_minute: Tokens of prompts and answers in any 60 seconds.
    """

    models: tuple[str, ...] | None = None
    max_concurrent: int | None = 4
    tokens_per_minute: int | None = None


class TrustedPeer(msgspec.Struct, frozen=True, kw_only=True):
    """A peer on the allow-list.

    Args:
        peer_id: Its id, which its key proves.
        name: What people here call it.
        quota: What it may use here.
        addresses: Where it was last reached, as multiaddrs without ``/p2p/<id>``.
        added_at: When it was trusted, seconds since the epoch.
        ours: Whether it is a machine of ours: requests go there without naming it, as to one of this machine.
    """

    peer_id: str
    name: str = ""
    quota: Quota = Quota()
    addresses: tuple[str, ...] = ()
    added_at: float = 0.0
    ours: bool = False


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation that is still open; it opens once, for whoever brings the secret first.

    Args:
        id: What it is called in lists.
        digest: SHA-256 of the secret; the secret itself is in the link only.
        name: What the peer will be called.
        quota: What the peer will be allowed to use.
        expires_at: When it ends, seconds since the epoch.
        ours: Whether the peer will be a machine of ours.
    """

    id: str
    digest: bytes
    name: str = ""
    quota: Quota = Quota()
    expires_at: float
    ours: bool = False


class OfferedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a node lends.

    Args:
        name: The model's name.
        tasks: Canonical task names it serves.
        digest: Digest of the weights, where known: the same digest continues an answer exactly.
        resume: Whether it continues prompt + text so far exactly.
        context_length: Tokens of prompt and answer together, if known.
        features: As in :class:`uia_lab.domain.backends.BackendCapabilities`.
    """

    name: str
    tasks: tuple[str, ...]
    digest: str | None = None
    resume: bool = False
    context_length: int | None = None
    features: tuple[str, ...] = ()


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a node lends to its peers.

    Args:
        models: The models.
        tasks: Canonical task names it serves with any model, beyond those of ``models``.
        hardware_types: For example ``("cuda",)``.
        max_concurrent: Requests it works on at once, if bounded.
    """

    models: tuple[OfferedModel, ...] = ()
    tasks: tuple[str, ...] = ()
    hardware_types: tuple[str, ...] = ()
    max_concurrent: int | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a node says it is. It is what the peer claims: a hint, never proof.

    Args:
        in_flight: Requests it works on.
        queued: Requests that wait there.
    """

    in_flight: int = 0
    queued: int = 0


class PeerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of one peer.

    Args:
        peer_id: Its id.
        name: What people here call it, else what it calls itself.
        state: How it is.
        reason: Why, in words a person reads.
        trusted: Whether it is on the allow-list.
        ours: Whether it is a machine of ours, by the allow-list.
        addresses: Where it is, as multiaddrs with ``/p2p/<id>``.
        found_by: Out of ``static bootstrap remembered mdns rendezvous dht inbound invite``.
        instance_id: Instance of the service there, once it said hello.
        version: Its version of uia_lab, once it said hello.
        offer: What it lends, of a signed record that is still good; None before hello.
        load: How busy it says it is; None while nothing is known.
        rtt_ms: Latest round trip of a ping.
        connected_at: Seconds since the epoch; None while not connected.
        last_seen: Seconds since the epoch; None if it never was there.
        serving: Requests of this peer that this node works on now.
        quota: What it may use here.
    """

    peer_id: str
    name: str = ""
    state: PeerState = PeerState.FOUND
    reason: str = ""
    trusted: bool = False
    ours: bool = False
    addresses: tuple[str, ...] = ()
    found_by: frozenset[str] = frozenset()
    instance_id: str = ""
    version: str = ""
    offer: Offer | None = None
    load: Load | None = None
    rtt_ms: float | None = None
    connected_at: float | None = None
    last_seen: float | None = None
    serving: int = 0
    quota: Quota | None = None

    @property
    def connected(self) -> bool:
        """Whether requests may go there now."""
        return self.state is PeerState.CONNECTED

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form that ``GET /peers`` lists."""
        plain: Mapping[str, Any] = msgspec.to_builtins(self, builtin_types=(frozenset,))
        return {**plain, "found_by": sorted(self.found_by)}


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """A new invitation, with the link that is shown this once.

    Args:
        id: What it is called in lists.
        link: What the friend gives to ``accept_invite``; it holds the secret.
        expires_at: When it ends, seconds since the epoch.
    """

    id: str
    link: str
    expires_at: float

    def __repr__(self) -> str:
        return f"Invitation(id={self.id!r}, expires_at={self.expires_at!r})"
