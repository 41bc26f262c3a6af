"""Backends by address over scripted servers."""

import contextlib
from contextlib import AsyncExitStack

import pytest

from tests.upstreams.scripted_api import ScriptedApi
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.requests import InferenceRequest

KEY = "sk-very-secret-0123456789"


@pytest.fixture
async def api():
    async with ScriptedApi() as server:
        yield server


@pytest.fixture
async def other():
    async with ScriptedApi() as server:
        yield server


@pytest.fixture
async def factory():
    made = BackendFactory(Secrets(environ={"MY_KEY": KEY}), EndpointPolicy(), "uia-me")
    yield made
    await made.close()


@pytest.fixture
async def build(factory):
    """Builds and starts the backend of a server; stops it at the end."""
    async with AsyncExitStack() as stack:

        async def build(server, dialect="openai", prefix="/v1", **fields):
            fields = {
                "id": "it",
                "type": "api",
                "endpoint": server.url + prefix,
                "dialect": dialect,
                **fields,
            }
            backend = factory.build(BackendDescription(**fields))
            await backend.start()
            stack.push_async_callback(backend.stop)
            return backend

        yield build


def chat(text="hi", model="m", **more):
    parameters = more.pop("parameters", {})
    messages = [{"role": "user", "content": text}]
    return InferenceRequest(
        "text-generation", model, messages=messages, parameters=parameters, stream=True, **more
    )


async def events(backend, request):
    async with contextlib.aclosing(backend.infer(request)) as stream:
        return [event async for event in stream]
