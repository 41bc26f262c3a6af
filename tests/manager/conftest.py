"""A manager of the test's own, closed at the end, and backends that do as they are told."""

import asyncio
import random

import pytest

from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
from uia_lab.inference_backend_manager import BackendManager


@pytest.fixture
async def manager():
    made = BackendManager({"enable_health_checks": False}, rng=random.Random(5))
    yield made
    await made.aclose()
    assert not made.running
    assert made.totals.in_flight == 0
    assert all(entry.in_flight == 0 for entry in made.router.registry)


class Scripted:
    """An adapter that sends the words it is given; an exception among them is raised, an Event awaited."""

    def __init__(self, *script, status=BackendStatus.HEALTHY, **capabilities):
        capabilities.setdefault("supported_tasks", {"text-generation"})
        self.capabilities = BackendCapabilities(supports_streaming=True, **capabilities)
        self.script = script
        self.status = status
        self.started = self.stopped = self.probes = self.closed = 0
        self.requests = []
        self.reached = asyncio.Event()

    async def start(self):
        self.started += 1

    async def stop(self):
        self.stopped += 1

    async def probe(self):
        self.probes += 1
        return Probe(self.status, "scripted")

    async def infer(self, request):
        self.requests.append(request)
        words = []
        try:
            yield Started("")
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, asyncio.Event):
                    self.reached.set()
                    await item.wait()
                    continue
                yield Chunk(len(words), Text(item))
                words.append(item)
            yield Finished("".join(words), Usage(3, len(words)), "stop")
        finally:
            self.closed += 1


@pytest.fixture
def scripted():
    return Scripted
