"""A manager on a clock that can be moved, fault servers, and adapters that do as they are told."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.upstreams.fault_server import FaultServer
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.manager import attempt


class Clock:
    """Real time plus what was skipped of it."""

    def __init__(self):
        self.skipped = 0.0

    def __call__(self):
        return time.monotonic() + self.skipped


def make_manager(**settings):
    """A manager with a clock to move (``pass_time``) and a list of its ``records``."""
    clock = Clock()
    settings.setdefault("enable_health_checks", False)
    manager = BackendManager(settings, clock=clock, rng=random.Random(5))
    manager.records = []
    manager.on_record = manager.records.append

    def pass_time(seconds):
        clock.skipped += seconds
        manager._tick()

    manager.pass_time = pass_time
    return manager


def check_backends(manager):
    """No lease and no trial is out; the attempts add up."""
    for info in manager.list_backends():
        metrics = info.metrics
        assert metrics.active_connections == 0, info.backend_id
        assert metrics.total_requests == (
            metrics.successful_requests
            + metrics.failed_requests
            + metrics.cancelled_requests
            + metrics.rejected_requests
        ), info.backend_id
    for entry in manager.router.registry:
        assert not entry.health.breaker.trial, f"{entry.backend_id}: a trial that nobody runs"


def check_rest(manager):
    """Nothing is under way, everything adds up, each request has one record."""
    assert not manager.running
    assert not manager.waiting
    assert len(manager.router.queue) == 0
    totals = manager.totals
    assert totals.in_flight == 0
    ended = {name: getattr(totals, name) for name in ("ok", "failed", "cancelled", "rejected")}
    assert sum(ended.values()) == totals.total
    check_backends(manager)
    assert len(manager.records) == totals.total
    assert len({record.id for record in manager.records}) == totals.total
    for name, count in ended.items():
        assert sum(record.outcome == name for record in manager.records) == count, name


@pytest.fixture
async def manager():
    made = make_manager(load_balancing="round_robin")
    yield made
    await made.aclose()
    check_rest(made)


@pytest.fixture
async def servers():
    """Two fault servers, closed at the end with nothing under way."""
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(FaultServer()) for _ in range(2)]
        yield SimpleNamespace(first=first, second=second)
        for server in (first, second):
            await server.until_idle()


@pytest.fixture
async def build():
    """Builds the adapter of a fault server."""
    factory = BackendFactory(Secrets(environ={}), EndpointPolicy(), "uia-under-test")

    def build(server):
        return factory.build(
            BackendDescription(id="fault", type="api", endpoint=f"{server.url}/v1", dialect="openai-chat")
        )

    yield build
    await factory.close()


@pytest.fixture
def register(manager, build):
    """Registers a fault server; the one of weight 100 is asked before its peers."""

    def add(name, server, weight=1.0, **capabilities):
        backend = build(server)
        able = replace(backend.capabilities, **capabilities)
        return manager.register_backend(name, "api", name, backend, able, weight=weight)

    return add


@pytest.fixture
def fleet(register, servers):
    """Both servers registered, the first asked first."""
    register("first", servers.first, weight=100.0)
    register("second", servers.second)
    return servers


def set_patience(monkeypatch, seconds):
    """Longest silence before the first chunk and between chunks."""
    for name in ("FIRST_CHUNK_S", "LOCAL_FIRST_CHUNK_S", "NEXT_CHUNK_S"):
        monkeypatch.setattr(attempt, name, seconds)


@pytest.fixture
def impatient(monkeypatch):
    """Silence is not borne for long."""
    set_patience(monkeypatch, 0.3)


class Told:
    """An adapter that says the words it is given; an exception is raised, an Event awaited."""

    def __init__(self, *script, **capabilities):
        capabilities.setdefault("supported_tasks", {"text-generation"})
        self.capabilities = BackendCapabilities(supports_streaming=True, **capabilities)
        self.script = script
        self.status = BackendStatus.HEALTHY
        self.probes = self.asked = self.closed = 0
        self.under_way = self.most_under_way = 0

    async def start(self):
        pass

    async def stop(self):
        pass

    async def probe(self):
        self.probes += 1
        return Probe(self.status, "as told")

    async def infer(self, request):
        self.asked += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        words = []
        try:
            yield Started("")
            for item in self.script:
                if isinstance(item, BaseException):
                    raise type(item)(*item.args, **_extra(item))
                if isinstance(item, asyncio.Event):
                    await item.wait()
                    continue
                yield Chunk(len(words), Text(item))
                words.append(item)
            yield Finished("".join(words), Usage(3, len(words)), "stop")
        finally:
            self.under_way -= 1
            self.closed += 1


def _extra(error):
    return {"retry_after": error.retry_after} if getattr(error, "retry_after", None) is not None else {}


@pytest.fixture
def told():
    return Told


async def until(condition, seconds=10.0):
    """Lets others run until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


async def read(stream, chunks):
    """The first chunks of a stream, with what came before them."""
    events = []
    async with asyncio.timeout(10):
        while sum(isinstance(event, Chunk) for event in events) < chunks:
            events.append(await anext(stream))
    return events
