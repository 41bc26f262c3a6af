"""LibP2PInferenceNode: the specification's names, over real nodes in this process."""

import asyncio

import pytest

from tests.p2p.conftest import counted, until
from uia_lab.config import ConfigError
from uia_lab.domain.errors import BadRequest, NoBackendAvailable
from uia_lab.inference_backend_manager import BackendCapabilities, get_backend_manager
from uia_lab.libp2p_inference import InferenceResponse, LibP2PInferenceNode, PeerCapability

TASK = "text-generation"


async def count(parameters):
    for number in range(parameters.get("max_tokens", 5)):
        yield f"{number} "


@pytest.fixture
async def make(network):
    made = []

    async def make(start=True, **settings):
        settings = {"mode": "open", "network": network, "enable_mdns": False, **settings}
        node = LibP2PInferenceNode(settings)
        made.append(node)
        if start:
            await node.start()
        return node

    yield make
    for node in made:
        await node.stop()


async def able(node, count, task=TASK, model=None):
    async with asyncio.timeout(30):
        while len(found := await node.find_peers_for_task(task, model)) < count:
            await asyncio.sleep(0.01)
    return found


async def test_a_request_is_answered_by_a_peer(make):
    lender = await make()
    lender.register_capability(PeerCapability.TEXT_GENERATION)
    lender.register_model("count", count)
    node = await make(bootstrap_peers=lender.addresses)
    (info,) = await able(node, 1, model="count")
    response = await node.submit_inference_request(TASK, "count", "x", {"max_tokens": 7})
    assert isinstance(response, InferenceResponse)
    assert (response.success, response.result, response.peer_id) == (True, counted(7), info.peer_id)
    assert response.error is None
    assert response.latency_ms > 0
    assert [item.outcome for item in response.attempts] == ["ok"]
    chunks = [chunk async for chunk in node.stream_inference_request(TASK, "count", "x", {"max_tokens": 7})]
    assert [(chunk.index, chunk.peer_id) for chunk in chunks] == [(n, info.peer_id) for n in range(7)]
    assert "".join(chunk.text for chunk in chunks) == counted(7)
    assert info.peer_id in {item.peer_id for item in node.peers}
    assert all(address.endswith(f"/p2p/{lender.node.peer_id}") for address in lender.addresses)


async def test_models_and_capabilities_change_while_it_runs(make):
    lender = await make()
    node = await make(bootstrap_peers=lender.addresses)
    assert await node.find_peers_for_task(TASK) == []
    lender.register_model("vectors", lambda inputs: [0.5, 1.0])
    lender.register_capability("text-embedding")
    await able(node, 1, "text-embedding", "vectors")
    response = await node.submit_inference_request("embeddings", "vectors", ["a"])
    assert (response.success, response.result) == (True, [0.5, 1.0])
    assert await node.find_peers_for_task(TASK) == []
    assert await node.find_peers_for_task("text-embedding", "other") == []
    assert await node.find_peers_for_task("text-embedding", max_peers=0) == []
    chunks = [chunk async for chunk in node.stream_inference_request("embeddings", "vectors", ["a"])]
    assert [(chunk.text, chunk.result) for chunk in chunks] == [("", [0.5, 1.0])]


async def test_what_no_peer_serves_is_served_here(make):
    node = await make()
    node.register_model("count", count)
    await node.manager.probe("local:count")
    response = await node.submit_inference_request(TASK, "count", "x")
    assert (response.success, response.peer_id) == (True, node.node.peer_id)


async def test_how_a_request_failed_is_in_the_response(make):
    async def broken(inputs):
        raise ValueError("no luck")
        yield

    lender = await make()
    lender.register_model("broken", broken)
    node = await make(bootstrap_peers=lender.addresses)
    await able(node, 1)
    response = await node.submit_inference_request(TASK, "broken", "x")
    assert (response.success, response.result, response.peer_id) == (False, None, "")
    assert "no luck" in response.error
    response = await node.submit_inference_request(TASK, "unknown", "x")
    assert not response.success
    assert "unknown" in response.error
    with pytest.raises(BadRequest, match="unknown task"):
        await node.submit_inference_request("juggling", "broken", "x")


async def test_a_deadline(make):
    async def never():
        await asyncio.Event().wait()
        yield

    lender = await make()
    lender.register_model("never", never)
    node = await make(bootstrap_peers=lender.addresses)
    await able(node, 1)
    response = await node.submit_inference_request(TASK, "never", "x", timeout=0.3)
    assert not response.success
    assert "deadline" in response.error


async def test_a_model_without_a_handler_is_served_by_the_manager_of_the_process(make, monkeypatch):
    monkeypatch.setattr("uia_lab.inference_backend_manager._shared", None)
    manager = get_backend_manager()
    try:
        lender = await make()
        lender.register_model("shared")
        node = await make(bootstrap_peers=lender.addresses)
        await until(lambda: node.peers and node.peers[0].connected)
        # Nobody can serve it yet: it is not lent.
        assert await node.find_peers_for_task(TASK) == []
        capabilities = BackendCapabilities({TASK}, {"shared"}, supports_streaming=True)
        manager.register_backend("s", "gpu", "S", count, capabilities)
        manager.register_backend("paid", "api", "P", count, capabilities, endpoint="https://api.example")
        await lender.manager.probe("local:shared")
        await able(node, 1, model="shared")
        response = await node.submit_inference_request(TASK, "shared", "x")
        assert response.result == counted(5)
        assert manager.get_backend("s").metrics.successful_requests == 1
        assert manager.get_backend("paid").metrics.total_requests == 0
    finally:
        await manager.aclose()


async def test_private_is_the_default_and_an_invitation_opens_it(make):
    lender = await make(mode="private")
    lender.register_model("count", count)
    node = await make(mode="private", bootstrap_peers=lender.addresses)
    await until(lambda: "not trusted" in node.peers[0].reason)
    response = await node.submit_inference_request(TASK, "count", "x")
    assert not response.success
    await node.node.accept_invite((await lender.node.invite("bob")).link)
    await able(node, 1)
    assert (await node.submit_inference_request(TASK, "count", "x")).result == counted(5)
    assert LibP2PInferenceNode({}).node.mode == "private"


async def test_it_starts_again_with_its_models(make):
    lender = await make()
    lender.register_model("count", count)
    await lender.stop()
    response = await lender.submit_inference_request(TASK, "count", "x")
    assert "start" in response.error
    with pytest.raises(NoBackendAvailable):
        await anext(lender.stream_inference_request(TASK, "count", "x"))
    await lender.start()
    await lender.start()
    node = await make(bootstrap_peers=lender.addresses)
    await able(node, 1, model="count")


async def test_off_is_no_network_and_no_error(make):
    node = await make(mode="off")
    node.register_model("count", count)
    await node.manager.probe("local:count")
    assert node.addresses == []
    assert (await node.submit_inference_request(TASK, "count", "x")).success


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"bootstrap": []}, "bootstrap_peers"),
        ({"mode": "public"}, "off, private, open"),
        ({"listen": "/ip4/127.0.0.1/tcp/0"}, "list of multiaddrs"),
        ({"listen": []}, "at least one"),
        ({"discovery_interval": -1}, "discovery_interval"),
        ({"request_timeout": "soon"}, "request_timeout"),
    ],
)
def test_a_bad_setting_is_an_error_that_names_it(settings, why):
    with pytest.raises(ConfigError, match=why):
        LibP2PInferenceNode(settings)


def test_bad_models_and_capabilities():
    node = LibP2PInferenceNode()
    with pytest.raises(BadRequest, match="capability"):
        node.register_capability("juggling")
    for model_id, handler in (("", None), (None, None), ("m", 7)):
        with pytest.raises(BadRequest):
            node.register_model(model_id, handler)
    assert {item.value for item in PeerCapability} == {
        "text-generation",
        "text-embedding",
        "image-generation",
        "image-classification",
        "audio-transcription",
        "translation",
        "summarization",
    }


async def test_a_stop_while_it_starts_and_two_starts_at_once(make):
    node = await make(start=False)
    starting = asyncio.create_task(node.start())
    await asyncio.sleep(0)
    await node.stop()
    await starting
    assert node.addresses == []
    await asyncio.gather(node.start(), node.start())
    assert node.addresses
    assert len([task for task in asyncio.all_tasks() if task.get_name() == "uia-peer-backends"]) == 1
    await node.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-")]
