"""Nodes on loopback in one process, and a bare libp2p host as somebody who means no good."""

import asyncio
import contextlib
import secrets
import threading
from pathlib import Path

import pytest

from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
from uia_lab.domain.peers import Offer, OfferedModel
from uia_lab.domain.requests import InferenceRequest
from uia_lab.p2p.node import P2PNode
from uia_lab.p2p.settings import P2PConfig
from uia_lab.p2p.trust import MemoryTrust

pytest.importorskip("libp2p", reason="libp2p is not installed: pip install 'uia-lab[p2p]'")

MODEL = "counting"
OFFER = Offer(models=(OfferedModel(name=MODEL, tasks=("text-generation",), digest="d", resume=True),))


class Counting:
    """Counts from 0 as long as it is asked to; it keeps what it was asked.

    Args:
        gate: Where given, each number waits for a permit.
    """

    def __init__(self, gate=None):
        self.gate = gate
        self.requests = []
        self.closed = 0
        self.made = 0

    async def __call__(self, request):
        self.requests.append(request)
        words = []
        try:
            yield Started("")
            for number in range(request.parameters.get("max_tokens", 5)):
                if self.gate is not None:
                    await self.gate.acquire()
                words.append(f"{number} ")
                self.made += 1
                yield Chunk(number, Text(words[-1]))
            yield Finished("".join(words), Usage(3, len(words)))
        finally:
            self.closed += 1


def counted(tokens):
    return "".join(f"{number} " for number in range(tokens))


def ask(tokens=5, model=MODEL, **fields):
    parameters = {"max_tokens": tokens, **fields.pop("parameters", {})}
    return InferenceRequest("text-generation", model, "x", parameters=parameters, stream=True, **fields)


async def read(events):
    """The text of an answer, and its end."""
    text, end = "", None
    async for event in events:
        if isinstance(event, Chunk):
            assert event.index == len(text.split()), "each token once, in order"
            text += event.delta.text
        elif isinstance(event, Finished):
            end = event
    return text, end


async def until(condition, seconds=30.0):
    """Waits for a condition that something outside brings about."""
    async with asyncio.timeout(seconds):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


@contextlib.asynccontextmanager
async def nodes_of(network):
    made = []

    async def make(serve=None, *, trust=None, offer=OFFER, start=True, **settings):
        settings = {"enable_mdns": False, "network": network, "discovery_interval": 1.0, **settings}
        node = P2PNode(
            P2PConfig(**settings),
            serve=serve or Counting(),
            trust=trust or MemoryTrust(),
            capabilities=(lambda: offer) if isinstance(offer, Offer) else offer,
            instance_id=f"instance-{len(made)}",
        )
        made.append(node)
        if start:
            await node.start()
        return node

    yield make
    for node in reversed(made):
        await node.stop()
    assert not [thread for thread in threading.enumerate() if "uia-p2p" in thread.name]


@pytest.fixture
def network():
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
async def make_node(network):
    async with nodes_of(network) as make:
        yield make


@pytest.fixture
async def friends(make_node):
    """A lender and a borrower that trust each other."""

    async def make(serve=None, **settings):
        lender, borrower = await make_node(serve, **settings), await make_node()
        await borrower.accept_invite((await lender.invite("bob")).link)
        return lender, borrower

    return make


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
