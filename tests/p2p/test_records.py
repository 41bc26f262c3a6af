"""Capability records: signed, of the peer they come from, with an expiry, and none older than the last."""

import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from uia_lab.domain.peers import Offer, OfferedModel
from uia_lab.p2p.messages import SignedRecord
from uia_lab.p2p.records import MOST_REMEMBERED, SKEW_S, VALID_S, RecordError, Signer, Verifier

ONE = Offer(models=(OfferedModel(name="one", tasks=("text-generation",)),))
TWO = Offer(models=(OfferedModel(name="two", tasks=("text-generation", "of-a-newer-version")),))


class Clock:
    now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def peer_id_of(key):
    return "peer-" + hashlib.sha256(key).hexdigest()[:8]


def make_signer(clock, key=None, network="net"):
    key = key or Ed25519PrivateKey.generate()
    peer_id = peer_id_of(key.public_key().public_bytes_raw())
    return Signer(key, peer_id, network, clock), peer_id


def test_a_record_counts_for_the_peer_that_signed_it(clock):
    signer, peer_id = make_signer(clock)
    verifier = Verifier("net", peer_id_of, clock)
    record = verifier.check(signer.record(ONE), peer_id)
    assert record.offer == ONE
    assert record.expires_at - record.issued_at == VALID_S
    with pytest.raises(RecordError, match="another peer"):
        verifier.check(signer.record(ONE), "peer-somebody")


def test_one_record_serves_until_the_offer_changes_or_it_grows_old(clock):
    signer, _ = make_signer(clock)
    first = signer.record(ONE)
    assert signer.record(ONE) is first
    assert signer.record(TWO) is not first
    again = signer.record(ONE)
    clock.now += VALID_S / 2
    assert signer.record(ONE) is not again


def test_a_replayed_record_is_refused_and_the_newest_may_come_again(clock):
    signer, peer_id = make_signer(clock)
    verifier = Verifier("net", peer_id_of, clock)
    old, new = signer.record(ONE), signer.record(TWO)
    verifier.check(old, peer_id)
    verifier.check(new, peer_id)
    verifier.check(new, peer_id)
    with pytest.raises(RecordError, match="older"):
        verifier.check(old, peer_id)


def test_a_restarted_peer_goes_on_above_what_it_said_before(clock):
    key = Ed25519PrivateKey.generate()
    before, peer_id = make_signer(clock, key)
    verifier = Verifier("net", peer_id_of, clock)
    for _ in range(5):
        verifier.check(before.record(ONE), peer_id)
        verifier.check(before.record(TWO), peer_id)
    clock.now += 1.0
    after, _ = make_signer(clock, key)
    assert verifier.check(after.record(ONE), peer_id).offer == ONE


@pytest.mark.parametrize("seconds", [VALID_S + SKEW_S + 1, -SKEW_S - 1])
def test_an_expired_record_and_one_of_the_future_are_refused(clock, seconds):
    signer, peer_id = make_signer(clock)
    signed = signer.record(ONE)
    clock.now += seconds
    with pytest.raises(RecordError, match="expired"):
        Verifier("net", peer_id_of, clock).check(signed, peer_id)


def resigned(key, owner, clock, changes):
    """A record that a peer signs itself, with whatever it likes in it."""
    record = {
        "peer_id": owner,
        "network": "net",
        "sequence": 1,
        "issued_at": clock.now,
        "expires_at": clock.now + VALID_S,
        "offer": {},
        **changes,
    }
    payload = msgspec.json.encode(record)
    return SignedRecord(
        payload=payload.decode(),
        key=key.public_key().public_bytes_raw(),
        signature=key.sign(b"uia-capability-record/1:" + payload),
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"expires_at": 9e9}, "too long"),
        ({"network": "other"}, "other"),
        ({"peer_id": "peer-other"}, "another peer"),
        ({"offer": {"models": [{"name": "", "tasks": []}]}}, "proper name"),
        ({"offer": {"models": [{"name": "a\x1b[2J", "tasks": []}]}}, "proper name"),
        ({"offer": {"models": [{"name": f"m{n}", "tasks": []} for n in range(1001)]}}, "more than"),
        ({"offer": {"max_concurrent": "many"}}, "cannot be read"),
    ],
)
def test_what_a_peer_signs_itself_is_bounded_too(clock, changes, why):
    key = Ed25519PrivateKey.generate()
    peer_id = peer_id_of(key.public_key().public_bytes_raw())
    with pytest.raises(RecordError, match=why):
        Verifier("net", peer_id_of, clock).check(resigned(key, peer_id, clock, changes), peer_id)


def test_a_changed_record_is_refused(clock):
    signer, peer_id = make_signer(clock)
    verifier = Verifier("net", peer_id_of, clock)
    signed = signer.record(ONE)
    forged = msgspec.structs.replace(signed, payload=signed.payload.replace("one", "two"))
    for bad in (
        forged,
        msgspec.structs.replace(signed, signature=b""),
        msgspec.structs.replace(signed, key=b"x"),
    ):
        with pytest.raises(RecordError):
            verifier.check(bad, peer_id)


def test_tasks_of_a_newer_version_are_left_out(clock):
    signer, peer_id = make_signer(clock)
    offer = Verifier("net", peer_id_of, clock).check(signer.record(TWO), peer_id).offer
    assert offer.models[0].tasks == ("text-generation",)


def test_what_is_remembered_is_bounded(clock):
    verifier = Verifier("net", peer_id_of, clock)
    for _ in range(3):
        signer, peer_id = make_signer(clock)
        verifier.check(signer.record(ONE), peer_id)
    verifier._newest.update({f"p{n}": (0, b"") for n in range(MOST_REMEMBERED)})
    signer, peer_id = make_signer(clock)
    verifier.check(signer.record(ONE), peer_id)
    assert len(verifier._newest) == MOST_REMEMBERED
