"""Two real llama.cpp servers: found on loopback, balanced, and one killed under load."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.upstreams.llamacpp_server import ALIAS, LlamaCppServer
from uia_lab.domain.errors import ContextTooLong, InferenceError, ModelNotFound, StreamInterrupted
from uia_lab.domain.events import Chunk, Finished

pytest.importorskip("xllamacpp")

GREEDY = {"temperature": 0, "seed": 1, "max_tokens": 8}
TOTAL = 18 + 6
ASK = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
async def servers(models):
    async with AsyncExitStack() as stack:
        pair = [LlamaCppServer(models.path("smollm2")) for _ in range(2)]
        await asyncio.gather(*(stack.enter_async_context(server) for server in pair))
        yield pair


@pytest.fixture
async def found(servers, discover):
    """Ids of the two, as discovery registered them."""
    items = await discover(ports=[server.port for server in servers]).look()
    assert [item.usable for item in items] == [True, True]
    return [item.backend_id for item in items]


async def test_found_asked_and_understood(servers, found, manager):
    first = servers[0]
    backend = manager.get_backend(found[0])
    assert (found[0], backend.models) == (f"llamacpp-{first.port}", {ALIAS})
    assert backend.status.value == "healthy"

    answer = await manager.infer("chat", ALIAS, messages=ASK, parameters=GREEDY, backend_id=found[0])
    assert len(answer.text) > 8
    assert (answer.usage.estimated, answer.usage.output_tokens) == (False, 8)
    assert answer.usage.input_tokens > 10
    assert answer.finish_reason == "length"
    asked = {**GREEDY, "logprobs": True, "top_logprobs": 2}
    events = [event async for event in manager.stream("chat", ALIAS, messages=ASK, parameters=asked)]
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert len(chunks) == 8
    assert len(chunks[0].logprobs["content"][0]["top_logprobs"]) == 2
    assert events[-1].result == answer.text

    plain = await manager.infer("generation", ALIAS, "The capital of France is", GREEDY)
    assert plain.text.startswith(" Paris")
    assert (plain.usage.input_tokens, plain.usage.output_tokens) == (5, 8)
    several = {**GREEDY, "n": 2, "temperature": 1}
    both = await manager.infer("chat", ALIAS, messages=ASK, parameters=several)
    assert {chunk.choice for chunk in both.chunks} == {0, 1}
    assert len(both.finish_reasons) == 2


async def test_errors_of_a_real_server(found, manager):
    # The server itself answers whichever model is named: the listing is what refuses it.
    with pytest.raises(ModelNotFound, match="smollm2"):
        await manager.infer("chat", "gpt-5", messages=ASK)
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(ContextTooLong):
        await manager.infer("chat", ALIAS, messages=long, parameters=GREEDY)
    bad = [{"role": "user", "content": [{"type": "nonsense"}]}]
    with pytest.raises(InferenceError) as caught:
        await manager.infer("chat", ALIAS, messages=bad)
    assert caught.value.http_status in (400, 500, 502)
    assert "answered" in caught.value.message


async def test_leaving_frees_the_slot(servers, found, manager):
    stream = manager.stream("chat", ALIAS, messages=ASK, parameters={"max_tokens": 400}, backend_id=found[0])
    async with stream:
        async for event in stream:
            if isinstance(event, Chunk):
                break
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{servers[0].url}/slots") as response:
                slots = await response.json()
            if not any(slot["is_processing"] for slot in slots):
                break
            await asyncio.sleep(0.02)
    assert manager.get_backend(found[0]).metrics.active_connections == 0


async def test_one_is_killed_under_load_and_the_other_takes_over(servers, found, manager):
    """No request fails before its first token; what had begun at the dead one says that it broke off."""
    manager.set_strategy("round_robin")
    begun = {name: asyncio.Event() for name in found}
    outcomes = []

    async def ask(number):
        chunks = 0
        try:
            stream = manager.stream(
                "chat", ALIAS, messages=ASK, parameters={**GREEDY, "max_tokens": 16, "seed": number}
            )
            async for event in stream:
                if isinstance(event, Chunk):
                    chunks += 1
                elif isinstance(event, Finished):
                    outcomes.append(("ok", event.attempts[-1].backend_id, chunks))
                elif event.backend_id in begun:
                    begun[event.backend_id].set()
        except InferenceError as error:
            outcomes.append((error, None, chunks))

    async with asyncio.timeout(100):
        async with asyncio.TaskGroup() as group:
            for number in range(18):
                group.create_task(ask(number))
            await asyncio.gather(*(event.wait() for event in begun.values()))
            await servers[0].kill()
        # And those that come later.
        await asyncio.gather(*(ask(number) for number in range(6)))
    assert len(outcomes) == TOTAL
    broken = [(error, chunks) for error, _, chunks in outcomes if error != "ok"]
    assert all(isinstance(error, StreamInterrupted) and chunks for error, chunks in broken), broken
    assert len(broken) <= servers[0].slots
    served = [name for outcome, name, _ in outcomes if outcome == "ok"]
    assert served.count(found[1]) >= TOTAL - len(broken) - servers[0].slots
    assert (
        not manager.get_backend(found[0]).routable or manager.get_backend(found[0]).status.value != "healthy"
    )
    await manager.probe(found[0])
    assert manager.get_backend(found[0]).status.value == "offline"
    totals = manager.totals
    assert (totals.total, totals.ok, totals.failed) == (TOTAL, TOTAL - len(broken), len(broken))
    assert totals.in_flight == 0
