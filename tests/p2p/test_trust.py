"""The allow-list and the invitations: one use, one peer, and nothing in force that is not kept."""

import asyncio

import pytest

from uia_lab.domain.errors import BadRequest, NotAllowed, StoreError
from uia_lab.domain.peers import Quota
from uia_lab.p2p.invites import PREFIX, Link, link_of
from uia_lab.p2p.trust import MOST_INVITES, MemoryTrust, Trust


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Broken(MemoryTrust):
    """A store that can be read and not written."""

    async def save_peer(self, peer):
        raise StoreError("the disk is full")

    save_invite = save_peer

    async def remove_peer(self, peer_id):
        raise StoreError("the disk is full")

    async def remove_invite(self, invite_id):
        raise StoreError("the disk is full")


@pytest.fixture
def clock():
    return Clock()


async def test_an_invitation_lets_one_peer_in_once(clock):
    trust = Trust(MemoryTrust(), clock)
    quota = Quota(models=("a*",), max_concurrent=1)
    invite, secret = await trust.invite("bob", quota, 60.0)
    assert secret.encode() not in invite.digest
    peer = await trust.redeem(secret, "peer-b", ("/ip4/127.0.0.1/tcp/1",))
    assert (peer.name, peer.quota, peer.added_at) == ("bob", quota, 1000.0)
    assert trust.trusts("peer-b")
    with pytest.raises(NotAllowed, match="used"):
        await trust.redeem(secret, "peer-c", ())
    assert not trust.trusts("peer-c")


async def test_two_who_bring_it_at_once_do_not_both_come_in(clock):
    trust = Trust(MemoryTrust(), clock)
    _, secret = await trust.invite("bob", None, 60.0)
    tries = [trust.redeem(secret, f"peer-{number}", ()) for number in range(20)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert len(trust.peers) == 1


async def test_two_servers_on_one_store_do_not_both_use_it(clock):
    store = MemoryTrust()
    first, second = Trust(store, clock), Trust(store, clock)
    _, secret = await first.invite("bob", None, 60.0)
    await second.load()
    await first.redeem(secret, "peer-b", ())
    with pytest.raises(NotAllowed, match="already"):
        await second.redeem(secret, "peer-c", ())


async def test_a_server_that_still_trusts_a_peer_does_not_bring_its_trust_back(clock):
    """A peer that is revoked at one server can connect to another one on the same store a moment later."""
    store = MemoryTrust()
    first, second = Trust(store, clock), Trust(store, clock)
    await first.add("peer-b", "bob", None, ("/ip4/127.0.0.1/tcp/1",))
    await second.load()
    await second.remember("peer-b", ("/ip4/127.0.0.1/tcp/2",))
    assert (await store.load())[0][0].addresses == ("/ip4/127.0.0.1/tcp/2",)
    await first.remove("peer-b")
    await second.remember("peer-b", ("/ip4/127.0.0.1/tcp/3",))
    assert await store.load() == ([], [])


async def test_an_expired_or_withdrawn_invitation_opens_nothing(clock):
    trust = Trust(MemoryTrust(), clock)
    _, late = await trust.invite("bob", None, 60.0)
    clock.now += 60.0
    assert trust.invites == []
    with pytest.raises(NotAllowed):
        await trust.redeem(late, "peer-b", ())
    invite, secret = await trust.invite("bob", None, 60.0)
    assert await trust.withdraw(invite.id)
    assert not await trust.withdraw(invite.id)
    with pytest.raises(NotAllowed):
        await trust.redeem(secret, "peer-b", ())
    for seconds in (0, -1, 1e10, float("nan")):
        with pytest.raises(BadRequest):
            await trust.invite("bob", None, seconds)


async def test_open_invitations_are_bounded(clock):
    trust = Trust(MemoryTrust(), clock)
    for _ in range(MOST_INVITES):
        await trust.invite("", None, 60.0)
    with pytest.raises(BadRequest, match="withdraw"):
        await trust.invite("", None, 60.0)


async def test_what_cannot_be_kept_is_not_in_force(clock):
    trust = Trust(Broken(), clock)
    with pytest.raises(StoreError):
        await trust.add("peer-b", "bob", None, ())
    with pytest.raises(StoreError):
        await trust.invite("bob", None, 60.0)
    assert trust.peers == {}
    assert trust.invites == []


async def test_who_is_trusted_no_longer_is_out_even_when_that_cannot_be_kept(clock):
    trust = Trust(Broken(), clock)
    trust._peers = {"peer-b": await Trust(MemoryTrust(), clock).add("peer-b", "", None, ())}
    with pytest.raises(StoreError):
        await trust.remove("peer-b")
    assert not trust.trusts("peer-b")


async def test_what_is_not_said_stays_as_it_was(clock):
    trust = Trust(MemoryTrust(), clock)
    await trust.add("peer-b", "bob", Quota(max_concurrent=1), ("/ip4/127.0.0.1/tcp/1",), ours=True)
    changed = await trust.add("peer-b", None, None, ())
    assert (changed.name, changed.quota.max_concurrent, changed.ours) == ("bob", 1, True)
    assert changed.addresses == ("/ip4/127.0.0.1/tcp/1",)
    await trust.remember("peer-b", ("/ip4/127.0.0.1/tcp/2",))
    await trust.remember("peer-c", ("/ip4/127.0.0.1/tcp/2",))
    assert trust.peers["peer-b"].addresses == ("/ip4/127.0.0.1/tcp/2",)
    assert list(trust.peers) == ["peer-b"]


def test_a_link_says_the_same_when_it_is_read_and_shows_no_secret():
    link = Link(peer="12D3KooWx", network="n", addresses=("/ip4/127.0.0.1/tcp/1",), secret="s3cret")
    assert link_of(link.text()) == link
    wrapped = "\n  ".join([link.text()[:30], link.text()[30:]])
    assert link_of(wrapped) == link
    assert "s3cret" not in repr(link)


@pytest.mark.parametrize(
    "text", ["", "hello", PREFIX, f"{PREFIX}!!!", f"{PREFIX}e30", PREFIX + "A" * 10_000, None, 7]
)
def test_what_is_no_link_is_a_bad_request(text):
    with pytest.raises(BadRequest, match="no link"):
        link_of(text)
