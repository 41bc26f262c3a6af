"""A discovery over scripted servers, its environment and its ports given."""

import random

import pytest

from tests.upstreams.scripted_api import ScriptedApi
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.discovery.apis import ApiDiscovery
from uia_lab.inference_backend_manager import BackendManager


class Clock:
    """Time that moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def api():
    async with ScriptedApi() as server:
        yield server


@pytest.fixture
async def other():
    async with ScriptedApi() as server:
        yield server


@pytest.fixture
async def manager():
    made = BackendManager({"enable_health_checks": False, "queue_timeout": 100.0})
    yield made
    await made.aclose()


@pytest.fixture
async def discover(manager, clock):
    """Makes a discovery; what it started is stopped at the end."""
    made = []

    def discover(*names, ports=(), environ=None, own=frozenset, **settings):
        environ = environ or {}
        factory = BackendFactory(Secrets(environ=environ), EndpointPolicy(), "uia-me")
        discovery = ApiDiscovery(
            manager, factory, names, ports, own,
            environ=environ, clock=clock, rng=random.Random(1), **settings,
        )  # fmt: skip
        made.append((discovery, factory))
        return discovery

    yield discover
    for discovery, _ in made:
        await discovery.stop()
    # As the service does it: a look that is still under way would open the connections again.
    await manager.aclose()
    for _, factory in made:
        await factory.close()
