"""Capability records: what a node lends, signed by its key, with an expiry, and never older than the last."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from uia_lab.domain.peers import Offer
from uia_lab.domain.tasks import TASKS
from uia_lab.p2p.messages import SignedRecord

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VALID_S = 3600.0
RENEW_S = VALID_S / 2
SKEW_S = 300.0
MAX_PAYLOAD = 256 << 10
MOST_MODELS = 1000
MOST_REMEMBERED = 4096
LONGEST_NAME = 512
_PURPOSE = b"uia-capability-record/1:"


class RecordError(Exception):
    """A record that does not count; the message says why."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed.

    Args:
        peer_id: Whose it is.
        network: For which network.
        sequence: Grows with each new record of a peer.
        issued_at: Seconds since the epoch.
        expires_at: Seconds since the epoch.
        offer: What is lent.
    """

    peer_id: str
    network: str
    sequence: int
    issued_at: float
    expires_at: float
    offer: Offer


_payload = msgspec.json.Decoder(Record)


class Signer:
    """Signs this node's records; the latest one is used until what is lent changes, or it grows old.

    Args:
        key: The node's key.
        peer_id: The node's id.
        network: Its network.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        key: "Ed25519PrivateKey",
        peer_id: str,
        network: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._peer_id = peer_id
        self._network = network
        self._clock = clock
        self._sequence = 0
        self._latest: tuple[Offer, float, SignedRecord] | None = None

    def record(self, offer: Offer) -> SignedRecord:
        """A record of this offer that is good for a while."""
        now = self._clock()
        if self._latest is not None:
            latest, issued_at, signed = self._latest
            if latest == offer and 0 <= now - issued_at < RENEW_S:
                return signed
        # By the clock, so that a restarted node goes on above what it said before.
        self._sequence = max(self._sequence + 1, int(now * 1e6))
        record = Record(
            peer_id=self._peer_id,
            network=self._network,
            sequence=self._sequence,
            issued_at=now,
            expires_at=now + VALID_S,
            offer=offer,
        )
        payload = msgspec.json.encode(record)
        signed = SignedRecord(
            payload=payload.decode(),
            key=self._key.public_key().public_bytes_raw(),
            signature=self._key.sign(_PURPOSE + payload),
        )
        self._latest = offer, now, signed
        return signed


class Verifier:
    """Checks records of others, and remembers the newest of each so that no older one counts again.

    Args:
        network: The network they must be for.
        peer_id_of: Gives the peer id of an Ed25519 public key of 32 bytes.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, network: str, peer_id_of: Callable[[bytes], str], clock: Callable[[], float] = time.time
    ) -> None:
        self._network = network
        self._peer_id_of = peer_id_of
        self._clock = clock
        self._newest: dict[str, tuple[int, bytes]] = {}

    def check(self, signed: SignedRecord, peer_id: str) -> Record:
        """The record, of the peer whose key has proved itself on the connection it came by.

        Raises:
            RecordError: It is not of that peer, forged, expired, replayed, or not for this network.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        payload = signed.payload.encode()
        if len(payload) > MAX_PAYLOAD:
            raise RecordError("the capability record is too large")
        try:
            if self._peer_id_of(signed.key) != peer_id:
                raise RecordError("the capability record is signed by another peer")
            Ed25519PublicKey.from_public_bytes(signed.key).verify(signed.signature, _PURPOSE + payload)
        except (InvalidSignature, ValueError):
            raise RecordError("the capability record is not signed by the peer") from None
        try:
            record = _payload.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise RecordError("the capability record cannot be read") from None
        if record.peer_id != peer_id:
            raise RecordError("the capability record is of another peer")
        if record.network != self._network:
            raise RecordError(f"the capability record is for the network {record.network!r:.80}")
        now = self._clock()
        if not record.issued_at - SKEW_S <= now <= record.expires_at + SKEW_S:
            raise RecordError("the capability record has expired, or the clocks differ by minutes")
        if record.expires_at - record.issued_at > VALID_S + 1:
            raise RecordError("the capability record is valid for too long")
        offer = _usable(record.offer)
        sequence, signature = self._newest.get(peer_id, (-1, b""))
        if record.sequence < sequence or (record.sequence == sequence and signed.signature != signature):
            raise RecordError("the capability record is older than one that came before")
        self._newest.pop(peer_id, None)
        while len(self._newest) >= MOST_REMEMBERED:
            # Whoever is forgotten can repeat itself until its record expires, and no longer.
            del self._newest[next(iter(self._newest))]
        self._newest[peer_id] = record.sequence, signed.signature
        return msgspec.structs.replace(record, offer=offer)

    def forget(self, peer_id: str) -> None:
        """Nothing is remembered of a peer any more."""
        self._newest.pop(peer_id, None)


def _usable(offer: Offer) -> Offer:
    """The offer without tasks that are not known here: a newer peer may have more."""
    if len(offer.models) > MOST_MODELS:
        raise RecordError(f"the capability record has more than {MOST_MODELS} models")
    for model in offer.models:
        if not 0 < len(model.name) <= LONGEST_NAME or not model.name.isprintable():
            raise RecordError("the capability record has a model without a proper name")
    models = tuple(
        msgspec.structs.replace(model, tasks=tuple(task for task in model.tasks if task in TASKS))
        for model in offer.models
    )
    return msgspec.structs.replace(
        offer, models=models, tasks=tuple(task for task in offer.tasks if task in TASKS)
    )
