"""A uia_lab server with functions as backends, for the adapters that dial one."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.doors.application import HttpServer
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

KEY = "uia-test-key-of-everything"


@asynccontextmanager
async def uia_servers():
    """Starts servers; they can be stopped and started again at their port."""
    made = []

    async def make(port=0, scopes=("infer", "read", "admin"), timings=None):
        config = InferenceServiceConfig(enable_hf_server=False, backend_health_checks=False)
        service = UnifiedInferenceService(config, manager=BackendManager(config))
        service.keys.add(KEY, Principal("peer", frozenset(scopes)))
        await service.start(listen=False)
        server = HttpServer(service, "127.0.0.1", port, timings)
        await server.start()
        manager = service.get_backend_manager()
        gate = asyncio.Event()
        running = SimpleNamespace(
            service=service, server=server, manager=manager, url=server.url, port=server.port, gate=gate
        )

        async def stop():
            await server.stop()
            await service.stop()

        running.stop = stop
        made.append(running)

        async def echo(inputs):
            text = inputs if isinstance(inputs, str) else inputs[-1]["content"]
            for word in text.split():
                yield word + " "

        async def gated():
            yield "begun "
            await gate.wait()
            yield "open"

        def vectors(inputs):
            return [[float(len(text)), 1.0] for text in inputs]

        for function, task in ((echo, "chat"), (gated, "chat"), (vectors, "embedding")):
            name = function.__name__
            can = BackendCapabilities({task}, {name}, supports_streaming=True)
            manager.register_backend(name, "gpu", name, function, can)
            await manager.probe(name)
        return running

    yield make
    for running in made:
        await running.stop()
        assert len(running.server.application.settings["uia_open_doors"]) == 0
