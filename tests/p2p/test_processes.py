"""Three nodes in separate processes: found by bootstrap and mDNS, killed and frozen within an answer."""

import asyncio
import signal
import time

import pytest

from tests.p2p.conftest import until
from tests.p2p.peer_node import MODEL, counted
from tests.p2p.peer_processes import peer_processes
from uia_lab.domain.peers import PeerState
from uia_lab.libp2p_inference import LibP2PInferenceNode

TASK = "text-generation"
# The protocol gives 15 s; the machine may be busy.
OFFLINE_S = 60.0


@pytest.fixture
def start_peer(network):
    with peer_processes(network) as start:
        yield start


@pytest.fixture
async def make_local(network):
    made = []

    async def make(**settings):
        node = LibP2PInferenceNode(
            {"mode": "open", "network": network, "enable_mdns": False, "discovery_interval": 1.0, **settings}
        )
        made.append(node)
        await node.start()
        return node

    yield make
    for node in made:
        await node.stop()


async def able(node, count, model=MODEL):
    """Peers that serve the model, once there are so many."""
    async with asyncio.timeout(60):
        while len(found := await node.find_peers_for_task(TASK, model)) < count:
            await asyncio.sleep(0.02)
    return found


async def streamed(node, tokens, meanwhile, at):
    """An answer, in which something happens to whoever sends it; its text, its senders, its largest gap."""
    text, senders, gaps, last = "", [], [], None
    chunks = node.stream_inference_request(TASK, MODEL, "x", {"max_tokens": tokens}, timeout=90)
    async for chunk in chunks:
        assert chunk.index == len(text.split()), "each token once, in order"
        now = time.monotonic()
        gaps.append(0.0 if last is None else now - last)
        last = now
        text += chunk.text
        if chunk.peer_id not in senders:
            senders.append(chunk.peer_id)
        if chunk.index == at:
            meanwhile(chunk.peer_id)
    return text, senders, max(gaps)


async def test_a_killed_and_a_frozen_peer_cost_no_token(start_peer, make_local):
    boot = start_peer(pause_s=0.02)
    others = [start_peer(pause_s=0.02, bootstrap_peers=boot.addresses) for _ in range(2)]
    peers = {peer.peer_id: peer for peer in (boot, *others)}
    node = await make_local(bootstrap_peers=boot.addresses)
    # The one that was named, and the two that were met there.
    found = await able(node, 3)
    assert {info.peer_id for info in found} == set(peers)
    frozen = []

    def freeze(peer_id):
        frozen.append(peer_id)
        peers[peer_id].signal(signal.SIGSTOP)

    text, senders, gap = await streamed(node, 150, freeze, at=40)
    assert text == counted(150)
    assert len(senders) == 2
    # The idle timeout is 1 s at these tokens.
    assert gap < 10
    await until(lambda: state(node, frozen[0]) is PeerState.OFFLINE, OFFLINE_S)
    assert not [info for info in await node.find_peers_for_task(TASK) if info.peer_id == frozen[0]]
    text, senders, gap = await streamed(node, 100, lambda peer_id: peers[peer_id].kill(), at=30)
    assert (text, len(senders)) == (counted(100), 2)
    assert gap < 10
    peers[frozen[0]].signal(signal.SIGCONT)
    await until(lambda: state(node, frozen[0]) is PeerState.CONNECTED, OFFLINE_S)
    response = await node.submit_inference_request(TASK, MODEL, "x", {"max_tokens": 10}, timeout=60)
    assert (response.success, response.result) == (True, counted(10))


def state(node, peer_id):
    return {info.peer_id: info.state for info in node.peers}[peer_id]


async def test_a_peer_that_dies_before_the_first_token_costs_nobody_anything(start_peer, make_local):
    slow, quick = start_peer(pause_s=30.0), start_peer()
    node = await make_local(bootstrap_peers=slow.addresses + quick.addresses)
    await able(node, 2)
    answers = [
        asyncio.create_task(node.submit_inference_request(TASK, MODEL, "x", {"max_tokens": 5}, timeout=60))
        for _ in range(2)
    ]
    backend = next(
        item.backend_id
        for item in node.manager.list_backends("p2p")
        if item.metadata["peer_id"] == slow.peer_id
    )
    await until(lambda: node.manager.get_backend(backend).metrics.active_connections)
    # A stranger may ask one thing at a time: the other answer is whole before this one moves there.
    await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    slow.kill()
    responses = await asyncio.gather(*answers)
    assert {response.result for response in responses} == {counted(5)}
    assert {response.peer_id for response in responses} == {quick.peer_id}
    assert any(len(response.attempts) == 2 for response in responses)


async def test_peers_of_this_machine_are_found_by_mdns_and_balanced_by_performance(start_peer, make_local):
    # So slow that the first request, which opens the connection's stream, is faster at the other one.
    slow = start_peer(enable_mdns=True, pause_s=0.3)
    quick = start_peer(enable_mdns=True)
    node = await make_local(enable_mdns=True)
    await able(node, 2)
    # Nothing else is switched on; who is met by the other's look counts as having come in.
    assert set().union(*(info.found_by for info in node.peers)) <= {"mdns", "inbound"}
    served = []
    for _ in range(24):
        response = await node.submit_inference_request(TASK, MODEL, "x", {"max_tokens": 5}, timeout=60)
        assert response.result == counted(5)
        served.append(response.peer_id)
    assert served.count(quick.peer_id) > served.count(slow.peer_id)
    assert (await node.find_peers_for_task(TASK, MODEL))[0].peer_id == quick.peer_id


async def test_a_local_model_of_a_peer(start_peer, make_local, models):
    model = "SmolLM2-135M-Instruct"
    peer = start_peer(model=model)
    node = await make_local(bootstrap_peers=peer.addresses)
    await able(node, 1, model)
    parameters = {"max_tokens": 12, "temperature": 0}
    response = await node.submit_inference_request(TASK, model, "Once upon a time", parameters, timeout=100)
    assert (response.success, response.error, response.peer_id) == (True, None, peer.peer_id)
    text = ""
    async for chunk in node.stream_inference_request(TASK, model, "Once upon a time", parameters, 100):
        text += chunk.text
    assert text == response.result
    assert len(text) > 10
