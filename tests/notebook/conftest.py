"""A service of plain functions for the notebook's tests, and a clean slate around each of them."""

import time
from types import SimpleNamespace

import pytest
from anyio.from_thread import start_blocking_portal

from uia_lab.access.keys import KeyRing
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.doors.application import HttpServer
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.notebook import connect as connecting


def words(inputs, parameters):
    """Streams the words of the prompt, each with its space; "slowly" makes it take its time."""
    prompt = inputs[-1]["content"]
    for word in prompt.split()[: parameters.get("max_tokens", 1000)]:
        if prompt.startswith("slowly"):
            time.sleep(0.02)
        yield f"{word} "


def lengths(inputs):
    return [[float(len(text)), 1.0] for text in inputs]


def broken():
    raise RuntimeError("out of paper")


class FunctionService:
    """What a Lab and the doors need of a service, over three functions."""

    ready = True
    config = SimpleNamespace(enable_websocket=True)

    def __init__(self):
        self.parts = {}
        self.keys = KeyRing()
        self.manager = None
        self.stopped = False

    async def start(self, listen=False):
        self.manager = BackendManager()
        for name, function, task, models in (
            ("words", words, "text-generation", {"w"}),
            ("lengths", lengths, "text-embedding", set()),
            ("broken", broken, "text-generation", {"b"}),
        ):
            can = BackendCapabilities({task}, models, supports_streaming=True)
            self.manager.register_backend(name, "gpu", name.title(), function, can)
        for backend in ("words", "lengths", "broken"):
            await self.manager.probe(backend)

    async def stop(self):
        self.stopped = True
        await self.manager.aclose()

    def get_backend_manager(self):
        return self.manager

    @property
    def instance_id(self):
        return self.manager.get_backend_status_report()["instance_id"]


@pytest.fixture
def service():
    return FunctionService()


@pytest.fixture
def server(service):
    """A listening server over the functions: its address and an admin's key."""
    with start_blocking_portal() as portal:
        portal.call(service.start)
        doors = HttpServer(service, "127.0.0.1", 0)
        portal.call(doors.start)
        key = service.keys.create("tests", ["infer", "read", "admin"])
        yield SimpleNamespace(url=doors.url, key=key, portal=portal)
        portal.call(doors.stop)
        portal.call(service.stop)


@pytest.fixture(autouse=True)
def no_default_lab(monkeypatch):
    for name in ("UIA_LAB_URL", "UIA_LAB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield
    connecting.forget()
