"""How nodes find each other; whoever is found counts after connect and hello, and not before."""

import asyncio
import itertools
import random

import pytest

from tests.p2p.conftest import ask, counted, read, until
from uia_lab.domain.errors import BackendFailed, NotAllowed
from uia_lab.domain.peers import PeerInfo, PeerState
from uia_lab.p2p.mdns import Mdns, _is_near, service_type


def by_id(node, other):
    return node.peer(other.peer_id) or PeerInfo(peer_id=other.peer_id)


async def test_peers_meet_at_their_bootstrap_node(make_node):
    boot = await make_node(mode="open", enable_dht=False)
    first, second = [
        await make_node(mode="open", enable_dht=False, bootstrap_peers=tuple(boot.addresses))
        for _ in range(2)
    ]
    await until(lambda: by_id(first, second).connected)
    assert "rendezvous" in by_id(first, second).found_by | by_id(second, first).found_by
    assert (await read(first.request(second.peer_id, ask())))[0] == counted(5)


async def test_in_open_mode_providers_in_the_dht_are_candidates(make_node):
    middle = await make_node(mode="open")
    first, second = [await make_node(mode="open", static_peers=tuple(middle.addresses)) for _ in range(2)]
    await until(lambda: by_id(first, second).connected and by_id(second, first).connected)
    assert "dht" in by_id(first, second).found_by | by_id(second, first).found_by


async def test_in_private_mode_whoever_is_found_is_not_dialled_and_there_is_no_dht(make_node):
    boot = await make_node()
    first, second = [await make_node(bootstrap_peers=tuple(boot.addresses)) for _ in range(2)]
    for node in (first, second):
        await boot.trust(node.peer_id)
    # Each is let in at the bootstrap node, hears of the other there, and trusts it no more for that.
    await until(lambda: "rendezvous" in by_id(first, second).found_by)
    assert by_id(first, second).state is PeerState.FOUND
    assert not by_id(second, first).connected
    assert "/ipfs/kad/1.0.0" not in first._hub.host.get_mux().handlers
    # Named as a bootstrap peer it is connected to; it may use nothing here for that.
    assert (by_id(first, boot).connected, by_id(first, boot).trusted) == (True, False)
    with pytest.raises((NotAllowed, BackendFailed)):
        await read(boot.request(first.peer_id, ask()))
    await first.trust(second.peer_id)
    await second.trust(first.peer_id)
    await until(lambda: by_id(first, second).connected)


async def test_a_bootstrap_peer_that_comes_later_is_dialled_until_it_is_there(make_node, tmp_path):
    boot = await make_node(mode="open", key_path=tmp_path / "boot.key")
    addresses = tuple(boot.addresses)
    listen = tuple(address.partition("/p2p/")[0] for address in addresses)
    await boot.stop()
    node = await make_node(mode="open", bootstrap_peers=addresses)
    await until(lambda: by_id(node, boot).state is PeerState.OFFLINE)
    assert "nobody can be reached" in by_id(node, boot).reason
    late = await make_node(mode="open", key_path=tmp_path / "boot.key", listen=listen)
    assert late.peer_id == boot.peer_id
    await until(lambda: by_id(node, boot).connected)
    # And again: libp2p itself would refuse for a minute whoever could not be reached once.
    await late.stop()
    await until(lambda: not by_id(node, boot).connected)
    await late.start()
    await until(lambda: by_id(node, boot).connected)


async def test_trusted_peers_are_remembered_with_their_addresses(make_node, tmp_path):
    from uia_lab.p2p.trust import MemoryTrust

    store = MemoryTrust()
    lender = await make_node()
    borrower = await make_node(trust=store, key_path=tmp_path / "b.key")
    await borrower.accept_invite((await lender.invite("bob")).link)
    await borrower.stop()
    (kept,), _ = await store.load()
    assert [f"{address}/p2p/{lender.peer_id}" for address in kept.addresses] == lender.addresses
    again = await make_node(trust=store, key_path=tmp_path / "b.key")
    await until(lambda: by_id(again, lender).connected)
    assert by_id(again, lender).found_by == {"remembered"}


async def test_two_that_dial_each_other_at_once_are_connected_all_the_same(make_node):
    first, second = await make_node(), await make_node()
    await first.trust(second.peer_id, addresses=_plain(second))
    await second.trust(first.peer_id, addresses=_plain(first))
    await asyncio.gather(first.refresh(second.peer_id), second.refresh(first.peer_id))
    answers = await asyncio.gather(
        *(read(one.request(other.peer_id, ask())) for one, other in ((first, second), (second, first)))
    )
    assert [text for text, _ in answers] == [counted(5)] * 2


def _plain(node):
    return tuple(address.partition("/p2p/")[0] for address in node.addresses)


async def test_a_node_that_looks_for_itself_does_not_find_itself(make_node):
    node = await make_node(mode="open", enable_mdns=True)
    node._found_near(node.peer_id, _plain(node))
    node._found_near("no peer id", _plain(node))
    await asyncio.sleep(0)
    assert node.peers == []


async def test_mdns_of_another_network_is_not_even_asked(network):
    assert service_type(network) != service_type(f"{network}x")
    assert len(service_type(network).split(".")[0]) <= 16
    found = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(peer_id, addresses):
        loop.call_soon_threadsafe(found.put_nowait, (peer_id, addresses))

    nodes = [
        Mdns(name, peer_id, (f"/ip4/127.0.0.1/tcp/{port}",), tell)
        for name, peer_id, port in (
            (network, "peer-a", 1001),
            (network, "peer-b", 1002),
            (f"{network}x", "peer-c", 1003),
        )
    ]
    for node in nodes:
        node.start()
    try:
        async with asyncio.timeout(30):
            got = {await found.get(), await found.get()}
    finally:
        for node in nodes:
            node.stop()
        await asyncio.gather(*(node.ended() for node in nodes))
    assert got == {
        ("peer-a", ("/ip4/127.0.0.1/tcp/1001",)),
        ("peer-b", ("/ip4/127.0.0.1/tcp/1002",)),
    }


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("/ip4/127.0.0.1/tcp/1", True),
        ("/ip4/192.168.1.7/tcp/4001", True),
        ("/ip4/8.8.8.8/tcp/4001", False),
        ("/ip4/192.168.1.7/tcp/0", False),
        ("/ip4/192.168.1.7/udp/4001", False),
        ("/dns4/example.org/tcp/4001", False),
        ("hello", False),
    ],
)
def test_what_is_announced_on_the_local_network_leads_nowhere_else(address, near):
    assert _is_near(address) is near


def test_back_off_grows_and_has_jitter_and_never_ends():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trio
        import trio.testing

        from uia_lab.p2p.dialer import Dialer
        from uia_lab.p2p.peer_table import PeerTable

    times = []

    async def main():
        table = PeerTable(lambda *_: None, lambda _: True)
        table.found("p", "bootstrap", ("/ip4/127.0.0.1/tcp/1",))

        async def connect(_):
            times.append(trio.current_time())
            raise BackendFailed("nobody is there")

        async with trio.open_nursery() as nursery:
            dialer = Dialer(
                nursery,
                table,
                connect,
                lambda _: None,
                lambda _: True,
                lambda _: False,
                60.0,
                random.Random(1),
            )
            dialer.consider("p")
            await trio.sleep(3600)
            assert table.get("p").state is PeerState.OFFLINE
            before = len(times)
            # A sign of life makes it hurry.
            dialer.consider("p")
            await trio.testing.wait_all_tasks_blocked()
            assert len(times) == before + 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 60 < len(pauses) < 150
    assert all(0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(pauses[:6]))
    assert max(pauses) <= 60
    assert len({round(pause, 3) for pause in pauses[10:20]}) > 5
