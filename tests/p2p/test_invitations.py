"""Who is let in and who is out: invitations, trust and its end, networks and modes."""

import asyncio

import pytest

from tests.p2p.conftest import Counting, ask, read, until
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    Cancelled,
    NotAllowed,
    RateLimited,
)
from uia_lab.domain.peers import PeerState
from uia_lab.p2p.trust import MemoryTrust


async def test_revoking_ends_what_is_under_way_and_lets_nobody_back(friends):
    serve = Counting(asyncio.Semaphore(2))
    lender, borrower = await friends(serve)
    answer = borrower.request(lender.peer_id, ask(1000))
    await anext(answer)
    assert await lender.revoke(borrower.peer_id)
    with pytest.raises((BackendFailed, Cancelled)):
        await read(answer)
    await until(lambda: serve.closed == 1)
    await until(lambda: borrower.peer(lender.peer_id).state is PeerState.REFUSED)
    assert "not trusted" in borrower.peer(lender.peer_id).reason
    with pytest.raises(NotAllowed):
        await borrower.refresh(lender.peer_id)
    with pytest.raises(BackendFailed, match="cannot be asked"):
        await read(borrower.request(lender.peer_id, ask()))
    assert not await lender.revoke(borrower.peer_id)


async def test_what_another_server_changed_in_the_store_counts_here_too(make_node, network):
    store = MemoryTrust()
    lender, borrower = await make_node(trust=store), await make_node()
    await borrower.accept_invite((await lender.invite("bob")).link)
    await store.remove_peer(borrower.peer_id)
    await lender.reload_trust()
    await until(lambda: borrower.peer(lender.peer_id).state is PeerState.REFUSED)
    assert not lender.peer(borrower.peer_id).trusted


async def test_a_used_invitation_lets_nobody_else_in(make_node):
    lender, first, second = [await make_node() for _ in range(3)]
    link = (await lender.invite("bob")).link
    await first.accept_invite(link)
    with pytest.raises(NotAllowed, match="used"):
        await second.accept_invite(link)
    assert second.peer(lender.peer_id).trusted is False
    assert lender.peer(second.peer_id).trusted is False


async def test_an_invitation_of_another_network_or_of_oneself(make_node):
    node, other = await make_node(), await make_node(network="another")
    link = (await node.invite()).link
    with pytest.raises(BadRequest, match="another"):
        await other.accept_invite(link)
    with pytest.raises(BadRequest, match="this very node"):
        await node.accept_invite(link)
    with pytest.raises(BadRequest, match="no link"):
        await node.accept_invite("hello")
    assert await node.withdraw(node.invites[0].id)


async def test_peers_of_another_network_are_refused(make_node):
    node, other = await make_node(mode="open"), await make_node(mode="open", network="another")
    with pytest.raises(NotAllowed, match="this is the network"):
        await other.connect(node.addresses[0])
    assert node.peer(other.peer_id).state is PeerState.REFUSED


async def test_in_open_mode_a_stranger_may_use_a_little(make_node):
    lender = await make_node(Counting(asyncio.Semaphore(0)), mode="open")
    stranger = await make_node(mode="open")
    info = await stranger.connect(lender.addresses[0])
    assert (info.connected, info.trusted) == (True, False)
    first = stranger.request(lender.peer_id, ask())
    await anext(first)
    with pytest.raises(RateLimited):
        await read(stranger.request(lender.peer_id, ask()))
    await first.aclose()
