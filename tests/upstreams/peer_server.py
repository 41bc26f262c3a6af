"""A uia_lab server with a libp2p node, in a process of its own: asked, frozen and killed by tests.

``python -m tests.upstreams.peer_server '{"p2p_network": ...}'`` writes a line of JSON with its ``url`` once
it serves, and ends when its standard input does.
"""

import asyncio
import json
import sys

from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

KEY = "uia-test-key-of-a-peer-server"
MODEL = "counting"
DIGEST = "sha256-of-counting"


class Counting:
    """Counts from 0, a number a token, as greedy models do: everywhere the same, and exactly continued.

    Args:
        pause_s: Seconds between two numbers.
        external: Whether it says that it leaves the machine.
        model: The model's name.
    """

    def __init__(self, pause_s=0.0, *, external=False, model=MODEL):
        self.pause_s = pause_s
        self.requests = []
        self.capabilities = BackendCapabilities(
            supported_tasks={"text-generation"},
            supported_models={model},
            supports_streaming=True,
            features={"seed"},
            resume=True,
            external=external,
            model_digest={model: DIGEST},
        )

    async def start(self):
        pass

    async def stop(self):
        pass

    async def probe(self):
        return Probe(BackendStatus.HEALTHY, "counts")

    async def infer(self, request):
        self.requests.append(request)
        begin = len(request.resumed.text.split()) if request.resumed is not None else 0
        end = request.parameters.get("max_tokens", 16)
        yield Started("")
        words = []
        for number in range(begin, end):
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            words.append(f"{number} ")
            yield Chunk(len(words) - 1, Text(words[-1]))
        yield Finished("".join(words), Usage(1, len(words)))


def counted(tokens):
    """The whole answer."""
    return "".join(f"{number} " for number in range(tokens))


async def serve(settings, pause_s, tell):
    """Serves until whoever started it closes the pipe."""
    config = InferenceServiceConfig(**settings)
    manager = BackendManager(config)
    service = UnifiedInferenceService(config, manager=manager)
    service.keys.add(KEY, Principal("test", frozenset({"admin"})))
    manager.register_backend("count", "gpu", "Counting", Counting(pause_s))
    manager.register_backend("paid", "api", "Paid", Counting(external=True, model="paid-model"))
    async with service:
        for name in ("count", "paid"):
            await manager.probe(name)
        server = service.get_hf_server()
        tell({"url": server.url if server is not None else None, "parts": service.parts})
        await asyncio.to_thread(sys.stdin.read)


def main():
    asked = json.loads(sys.argv[1])
    for name in asked.pop("without", ()):
        sys.modules[name] = None
    pause_s = asked.pop("pause_s", 0.0)
    asyncio.run(serve(asked, pause_s, ready))


def ready(told):
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
