"""A real server on a free port over a manager with functions as backends."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest

from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Started
from uia_lab.doors.application import HttpServer
from uia_lab.doors.base import Timings
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

KEYS = {scope: f"uia-test-key-of-{scope}" for scope in ("infer", "read", "admin", "infer2")}


class Socket:
    """One connection to ``/ws``."""

    def __init__(self, ws):
        self.ws = ws
        self.hello = None

    async def send(self, name, /, **fields):
        await self.ws.send_json({"type": name, **fields})

    async def receive(self, *types, seconds=20.0):
        """The next message, or the next one of some types."""
        async with asyncio.timeout(seconds):
            while True:
                message = await self.ws.receive_json()
                assert isinstance(message["timestamp"], float)
                if not types or message["type"] in types:
                    return message

    async def ask(self, name, /, **fields):
        await self.send(name, **fields)
        return await self.receive()

    async def closed(self, seconds=20.0):
        """The code it is closed with; what comes before is dropped."""
        async with asyncio.timeout(seconds):
            while not self.ws.closed:
                await self.ws.receive()
        return self.ws.close_code


@dataclass
class House:
    """The server under test, its keys, and what its backends can be told."""

    service: UnifiedInferenceService
    server: HttpServer
    session: aiohttp.ClientSession
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    produced: int = 0
    script: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    @property
    def manager(self):
        return self.service.get_backend_manager()

    def call(self, method, path, key="admin", **options):
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {KEYS[key]}"
        return self.session.request(method, self.server.url + path, headers=headers, **options)

    def chat(self, model="echo", text="a b c", key="infer", headers=None, **fields):
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self.call("POST", "v1/chat/completions", key, json=body, headers=headers or {})

    @asynccontextmanager
    async def socket(self, key="admin", client_id="me", greeted=True, **options):
        url = f"{self.server.url}ws/{client_id}?token={KEYS[key]}"
        async with self.session.ws_connect(url, **options) as ws:
            socket = Socket(ws)
            if greeted:
                socket.hello = await socket.receive("connection")
            yield socket

    async def until_idle(self, seconds=20.0):
        async with asyncio.timeout(seconds):
            while self.manager.get_backend_status_report()["in_flight"]:
                await asyncio.sleep(0.01)

    async def until_running(self, seconds=20.0):
        async with asyncio.timeout(seconds):
            while not self.manager.running:
                await asyncio.sleep(0.01)


class Scripted:
    """Answers with the events, or the error, that the test wrote down, and remembers what it was asked."""

    capabilities = BackendCapabilities(
        {"text-generation"},
        {"scripted"},
        supports_streaming=True,
        features={"tools", "vision", "files", "response_format", "logprobs"},
        external=False,
    )

    def __init__(self, house):
        self.house = house

    async def start(self):
        pass

    async def stop(self):
        pass

    async def probe(self):
        return Probe(BackendStatus.HEALTHY, "written down")

    async def infer(self, request):
        self.house.asked.append(request)
        yield Started("")
        for event in self.house.script:
            if isinstance(event, Exception):
                raise event
            yield event


def text_of(inputs):
    return inputs if isinstance(inputs, str) else inputs[-1]["content"]


def register(house):
    """The backends; each serves the model of its own name."""

    async def echo(inputs):
        for word in text_of(inputs).split():
            yield word + " "

    async def endless():
        while True:
            house.produced += 1
            yield "x" * 1000

    async def gated():
        await house.gate.wait()
        yield "open"

    async def breaks():
        yield "begun "
        raise BackendFailed("the wheel came off")

    def crashes():
        raise ZeroDivisionError("secret detail")

    def vectors(inputs):
        texts = inputs if isinstance(inputs, list) else [inputs]
        return [[float(len(text)), 1.0, 0.5] for text in texts]

    for function in (echo, endless, gated, breaks, crashes):
        name = function.__name__
        house.manager.register_backend(
            name, "gpu", name.title(), function,
            BackendCapabilities({"text-generation"}, {name}, supports_streaming=True),
        )  # fmt: skip
    house.manager.register_backend(
        "vectors", "gpu", "Vectors", vectors, BackendCapabilities({"text-embedding"}, {"org/vectors"})
    )


@pytest.fixture
def scripted(house):
    """The house with one more backend, which serves the model ``scripted``."""
    house.manager.register_backend("scripted", "gpu", "Scripted", Scripted(house))
    return house


@pytest.fixture
async def house():
    config = InferenceServiceConfig(enable_hf_server=False, backend_health_checks=False)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    for name, key in KEYS.items():
        service.keys.add(key, Principal(name, frozenset({name.rstrip("2")})))
    await service.start(listen=False)
    server = HttpServer(service, "127.0.0.1", 0, Timings(hold_s=0.15, waiting_s=0.1, stalled_s=1.0))
    await server.start()
    async with aiohttp.ClientSession() as session:
        house = House(service, server, session)
        register(house)
        yield house
    await server.stop()
    await service.stop()
    assert len(server.application.settings["uia_open_doors"]) == 0
