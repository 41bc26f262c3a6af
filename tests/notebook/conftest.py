"""A service of plain functions for the notebook's tests, and a clean slate around each of them."""

import time
from types import SimpleNamespace

import pytest
from anyio.from_thread import start_blocking_portal

from uia_lab.access.keys import new_key
from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.doors.application import HttpServer
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.notebook import connect as connecting
from uia_lab.unified_inference_service import UnifiedInferenceService


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


class FunctionService(UnifiedInferenceService):
    """The real service, with functions in place of the packaged models."""

    def __init__(self):
        config = InferenceServiceConfig(enable_hf_server=False, hf_enable_hardware_detection=False)
        super().__init__(config, manager=BackendManager(config))

    async def start(self, *, listen=False, store=False):
        await super().start(listen=False, store=False)
        manager = self.get_backend_manager()
        for name, function, task, models in (
            ("words", words, "text-generation", {"w", "shared"}),
            ("lengths", lengths, "text-embedding", set()),
            ("broken", broken, "text-generation", {"b", "shared"}),
        ):
            can = BackendCapabilities({task}, models, supports_streaming=True)
            manager.register_backend(name, "gpu", name.title(), function, can)
        for backend in ("words", "lengths", "broken"):
            await manager.probe(backend)


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
        key = new_key()
        service.keys.add(key, Principal("tests", frozenset({"admin"})))
        yield SimpleNamespace(url=doors.url, key=key, portal=portal, doors=doors)
        portal.call(doors.stop)
        portal.call(service.stop)


@pytest.fixture(autouse=True)
def no_default_lab(monkeypatch):
    for name in ("UIA_LAB_URL", "UIA_LAB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield
    connecting.forget()
