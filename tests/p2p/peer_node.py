"""A LibP2PInferenceNode in a process of its own: asked, frozen and killed by tests and benchmarks.

``python -m tests.p2p.peer_node '{"network": ...}'`` writes a line of JSON with its addresses and peer id once
it listens, and ends when its standard input does. Beside the node's settings: ``pause_s`` between two tokens,
``model`` to serve a local model of this machine in place of counting, and ``report`` for a line of JSON
whenever the state of a peer changes.
"""

import asyncio
import json
import sys

from uia_lab.domain.backends import BackendStatus
from uia_lab.libp2p_inference import LibP2PInferenceNode, PeerCapability

MODEL = "counting"
DIGEST = "sha256-of-counting"


def counted(tokens):
    """The whole answer."""
    return "".join(f"{number} " for number in range(tokens))


def counting(pause_s):
    """As a greedy model with the same weights everywhere: it goes on exactly where another broke off."""

    async def count(request, parameters):
        begin = len(request.resumed.text.split()) if request.resumed is not None else 0
        for number in range(begin, parameters.get("max_tokens", 16)):
            if pause_s:
                await asyncio.sleep(pause_s)
            yield f"{number} "

    return count


def say(told):
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


async def follow(node):
    """A line for each change of a peer's state."""
    known = {}
    async for info in node.node.subscribe():
        if known.get(info.peer_id) != info.state:
            known[info.peer_id] = info.state
            say({"peer_id": info.peer_id, "state": info.state.value, "found_by": sorted(info.found_by)})


async def serve(settings):
    pause_s, model = settings.pop("pause_s", 0.0), settings.pop("model", None)
    report = settings.pop("report", False)
    node = LibP2PInferenceNode(settings)
    node.register_capability(PeerCapability.TEXT_GENERATION)
    service = None
    if model is None:
        node.register_model(MODEL, counting(pause_s), digest=DIGEST)
    else:
        from uia_lab.config import InferenceServiceConfig
        from uia_lab.unified_inference_service import UnifiedInferenceService

        config = InferenceServiceConfig(
            hf_server_port=0, enable_api_backends=False, default_model=model, store_path=":memory:"
        )
        service = UnifiedInferenceService(config)
        await service.start()
        node.register_model(model)
        while (await node.manager.probe(f"local:{model}")).status is not BackendStatus.HEALTHY:
            await asyncio.sleep(0.1)
    await node.start()
    told = {"addresses": node.addresses, "peer_id": node.node.peer_id}
    say(told)
    following = asyncio.create_task(follow(node)) if report else None
    await asyncio.to_thread(sys.stdin.read)
    if following is not None:
        following.cancel()
    await node.stop()
    if service is not None:
        await service.stop()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
