"""The traps of py-libp2p that were measured, each with what keeps us out of it.

Those that have a test of their own elsewhere: plain text (test_attacks), a killed peer that looks like a
proper end (test_processes, and an answer without ``done`` in test_attacks), a frozen one (test_processes), a
slow reader (test_attacks), half-open streams (test_attacks), libgmp (test_node), descriptors (test_node).
"""

import asyncio
import logging
import threading
import time
import warnings

import pytest

from tests.p2p.bare_host import bare_host
from tests.p2p.conftest import Counting, ask, counted, read, until
from uia_lab.p2p import messages

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trio
    from libp2p.discovery.events.peerDiscovery import peerDiscovery
    from libp2p.network import swarm

    from uia_lab.p2p.libp2p_host import make_host
    from uia_lab.p2p.streams import StreamGone, open_stream


async def test_a_dial_does_not_wait_for_a_second_one_that_never_comes(make_node, monkeypatch):
    """Dialling by peer id takes this long at least, and refuses for a minute whoever failed once."""
    monkeypatch.setattr(swarm, "_HAPPY_EYEBALLS_DELAY", 60.0)
    node, other = await make_node(mode="open"), await make_node(mode="open")
    async with asyncio.timeout(30):
        await other.connect(node.addresses[0])


async def test_mdns_runs_beside_the_trio_thread(make_node):
    node = await make_node(enable_mdns=True)
    assert node._hub.host.mDNS is None
    assert "uia-mdns" in {thread.name for thread in threading.enumerate()}
    assert node._thread._thread.name == "uia-p2p"
    await node.stop()
    assert "uia-mdns" not in {thread.name for thread in threading.enumerate()}


class NoSlot:
    """What a connection with 256 open streams has for whoever wants another."""

    async def acquire(self):
        await trio.sleep_forever()

    def release(self):
        """One of the others ends; somebody else was quicker."""

    value = 0


async def test_the_257th_stream_fails_instead_of_waiting_for_ever(make_node):
    node = await make_node(mode="open")
    async with bare_host(b"k" * 32) as bare:
        connection = await bare.dial(node.addresses[0])

        async def open_without_a_free_slot():
            connection.muxed_conn.stream_backlog_semaphore = NoSlot()
            began = trio.current_time()
            with pytest.raises(StreamGone, match="within 2 s"):
                await open_stream(connection, messages.STATUS)
            return trio.current_time() - began

        assert await bare.run(open_without_a_free_slot) < 20


async def test_requests_share_one_stream(friends):
    lender, borrower = await friends(Counting())
    for _ in range(20):
        await read(borrower.request(lender.peer_id, ask()))
    (sessions,) = borrower._hub._sessions.values()
    protocols = [stream.get_protocol() for stream in sessions[-1].connection.streams]
    assert protocols.count(messages.INFERENCE) == 1


async def test_importing_what_is_public_imports_no_libp2p():
    import subprocess
    import sys

    code = (
        "import sys, uia_lab.p2p.node, uia_lab.libp2p_inference, uia_lab.unified_inference_service\n"
        "print(sorted({'libp2p', 'trio', 'zeroconf', 'multiaddr', 'fastecdsa'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_the_process_wide_register_of_found_peers_is_left_alone(make_node):
    before = list(peerDiscovery._peer_discovered_handlers)
    await make_node(mode="open", enable_mdns=True)
    assert list(peerDiscovery._peer_discovered_handlers) == before


async def test_the_list_that_means_bypass_the_limits_is_not_our_gate(friends):
    lender, _ = await friends()
    manager = lender._hub.host.get_network()._resource_manager
    assert not manager.allowlist or not manager.allowlist.get_stats()["allowed_peers"]


def test_one_transport_one_security_one_muxer():
    network = make_host(b"s" * 32).get_network()
    assert [type(item).__name__ for item in network.transport_manager.get_transports()] == ["TCP"]
    assert list(network.upgrader.security_multistream.transports) == ["/noise"]
    assert list(network.upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


async def test_it_dials_nobody_by_itself(make_node):
    """libp2p keeps connections up to half of its high mark, to whoever it has seen once."""
    node, other = await make_node(mode="open"), await make_node(mode="open", enable_dht=False)
    await other.connect(node.addresses[0])
    network = other._hub.host.get_network()
    assert (network.connection_config.low_watermark, network.connection_config.min_connections) == (0, 0)
    dialled = []
    network.dial_peer = dialled.append

    async def look():
        await network.auto_connector.maybe_connect()

    await other._thread.call(look)
    assert dialled == []


async def test_the_root_logger_is_left_alone(make_node):
    """libp2p calls functions of logging itself, which set up a root logger that has no handlers."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        node, other = await make_node(mode="open"), await make_node(mode="open")
        await other.connect(node.addresses[0])
        await other.stop()
        await until(lambda: not node.peer(other.peer_id).connected)
        assert root.handlers == []
    finally:
        root.handlers = handlers


async def test_a_handler_that_fails_ends_its_own_stream_only(friends, caplog):
    """An exception out of a stream handler would end the connections of everybody."""
    lender, borrower = await friends(Counting())

    async def fail(raw):
        await raw.read(1)
        raise ZeroDivisionError("on purpose")

    from uia_lab.p2p.guards import contained

    lender._hub.host.set_stream_handler("/test/1.0.0", contained(fail))
    (sessions,) = borrower._hub._sessions.values()

    async def open_and_read():
        stream = await open_stream(sessions[-1].connection, "/test/1.0.0")
        await stream.write(b"x")
        with pytest.raises(Exception, match=r".*"):
            await stream.read(1)

    await borrower._thread.call(open_and_read)
    assert (await read(borrower.request(lender.peer_id, ask())))[0] == counted(5)
    assert "on purpose" in caplog.text


async def test_the_loop_is_not_held_up_while_a_node_starts_and_works(friends):
    """The trio half has a thread of its own: a turn of the loop never waits for it."""
    worst, ended = 0.0, asyncio.Event()

    async def watch():
        nonlocal worst
        while not ended.is_set():
            began = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - began)

    watching = asyncio.create_task(watch())
    lender, borrower = await friends(Counting())
    await read(borrower.request(lender.peer_id, ask(500)))
    ended.set()
    await watching
    # 30 ms on an idle machine; mDNS of libp2p itself would hold its thread for 1.5 s.
    assert worst < 5
