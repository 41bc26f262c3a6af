"""Several ways to one place: the best live one serves, another takes over before the first token."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.upstreams.scripted_api import ScriptedApi, words
from tests.upstreams.uia_server import KEY
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.surroundings import House
from uia_lab.backends.factory import BackendFactory
from uia_lab.backends.hybrid import HybridBackend
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed, BadRequest, NoBackendAvailable, QueueFull, StreamInterrupted
from uia_lab.domain.events import Chunk, Finished, Started, Text
from uia_lab.domain.requests import InferenceRequest

FAKE = str(Path(__file__).parents[1] / "upstreams" / "fake_cli.py")


class Way:
    """A part that does what it is told."""

    def __init__(self, name, models=("m",), **capabilities):
        self.name = name
        self.capabilities = BackendCapabilities(
            {"text-generation"}, set(models), external=False, **capabilities
        )
        self.status = BackendStatus.HEALTHY
        self.fails = self.breaks = self.start_fails = self.hangs = False
        self.calls = self.started = self.stopped = 0

    async def start(self):
        if self.start_fails:
            raise OSError(f"{self.name} is closed")
        self.started += 1

    async def stop(self):
        self.stopped += 1

    async def probe(self):
        if self.hangs:
            await asyncio.Event().wait()
        return Probe(self.status, f"{self.name} is {self.status}")

    async def infer(self, request):
        self.calls += 1
        yield Started("")
        if self.fails:
            raise BackendFailed(f"{self.name} is out of order")
        yield Chunk(0, Text(self.name))
        if self.breaks:
            raise BackendFailed(f"{self.name} broke")
        yield Finished(self.name)


@pytest.fixture
def ways():
    return Way("best"), Way("other")


@pytest.fixture
async def hybrid(local_manager, ways):
    made = HybridBackend({"http": ways[0], "websocket": ways[1]})
    local_manager.register_backend("it", "hybrid", "It", made)
    await local_manager.probe("it")
    return local_manager


async def test_the_best_one_serves(hybrid, ways):
    info = hybrid.get_backend("it")
    assert (info.type, info.status, info.reason) == ("hybrid", BackendStatus.HEALTHY, "by http")
    assert info.capabilities.protocols == {"http", "websocket"}
    assert info.capabilities.external is False
    assert (await hybrid.infer("chat", "m", "x")).text == "best"
    assert ways[1].calls == 0


async def test_another_takes_over_before_the_first_token(hybrid, ways):
    ways[0].fails = True
    for _ in range(3):
        assert (await hybrid.infer("chat", "m", "x")).text == "other"
    # Until the next look it is not asked again.
    assert ways[0].calls == 1
    metrics = hybrid.get_backend("it").metrics
    assert (metrics.successful_requests, metrics.failed_requests) == (3, 0)
    ways[0].fails = False
    await hybrid.probe("it")
    assert (await hybrid.infer("chat", "m", "x")).text == "best"


async def test_after_the_first_token_nobody_takes_over(hybrid, ways):
    ways[0].breaks = True
    with pytest.raises(StreamInterrupted, match="best broke"):
        await hybrid.infer("chat", "m", "x")
    assert ways[1].calls == 0


async def test_what_may_have_changed_the_world_is_not_done_again_by_another(local_manager):
    acting, other = Way("acting", side_effects=True), Way("other")
    acting.fails = True
    local_manager.register_backend("it", "hybrid", "It", HybridBackend({"mcp": acting, "http": other}))
    await local_manager.probe("it")
    with pytest.raises(BackendFailed, match="acting is out of order"):
        await local_manager.infer("chat", "m", "x")
    assert (acting.calls, other.calls) == (1, 0)


async def test_one_whose_start_is_cut_is_stopped_too(ways, monkeypatch):
    monkeypatch.setattr("uia_lab.backends.hybrid.START_S", 0.05)
    monkeypatch.setattr(ways[0], "start", asyncio.Event().wait)
    made = HybridBackend({"a": ways[0], "b": ways[1]})
    await made.start()
    await made.stop()
    assert [way.stopped for way in ways] == [1, 1]


async def test_one_that_is_down_is_passed_over_and_said(hybrid, ways):
    ways[0].status = BackendStatus.OFFLINE
    info = await hybrid.probe("it")
    assert info.status is BackendStatus.DEGRADED
    assert info.reason == "by websocket; http: best is offline"
    assert info.routable
    assert (await hybrid.infer("chat", "m", "x")).text == "other"
    ways[1].status = BackendStatus.UNHEALTHY
    info = await hybrid.probe("it")
    assert (info.status, info.routable) == (BackendStatus.OFFLINE, False)
    assert "best is offline" in info.reason
    assert "other is unhealthy" in info.reason


async def test_one_that_hangs_does_not_hide_the_others(ways, monkeypatch):
    monkeypatch.setattr("uia_lab.backends.hybrid.LOOK_S", 0.1)
    made = HybridBackend({"a": ways[0], "b": ways[1]})
    await made.start()
    ways[0].hangs = True
    found = await made.probe()
    assert (found.status, found.reason) == (BackendStatus.DEGRADED, "by b; a: no answer within 0.1 s")
    await made.stop()
    assert [way.stopped for way in ways] == [1, 1]


async def test_one_that_cannot_start_is_started_by_a_later_look(ways):
    ways[0].start_fails = True
    made = HybridBackend({"a": ways[0], "b": ways[1]})
    await made.start()
    assert (await made.probe()).reason == "by b; a: best is closed"
    ways[0].start_fails = False
    assert (await made.probe()).reason == "by a"
    ways[0].start_fails = ways[1].start_fails = True
    await made.stop()
    with pytest.raises(BackendFailed, match="best is closed; other is closed"):
        await made.start()


async def test_each_request_goes_to_a_part_that_can_do_it(local_manager):
    plain, able = Way("plain", ["a", "b"]), Way("able", ["b", "c"], features={"tools"})
    local_manager.register_backend("it", "hybrid", "It", HybridBackend({"x": plain, "y": able}))
    info = await local_manager.probe("it")
    assert info.models == {"a", "b", "c"}
    assert (await local_manager.infer("chat", "c", "x")).text == "able"
    assert (await local_manager.infer("chat", "b", "x")).text == "plain"
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    assert (await local_manager.infer("chat", "b", "x", tools)).text == "able"
    with pytest.raises(NoBackendAvailable, match="x: has no tools; y: does not serve a"):
        await local_manager.infer("chat", "a", "x", tools)


async def test_an_sdk_and_a_tool(local_manager, tmp_path):
    """A function that calls a library, and a program when that fails."""
    maker = CliMaker(Secrets(environ={}), House("uia-me"))
    command = [sys.executable, FAKE, "echo", "hybrid"]
    tool = maker.build(BackendDescription(id="it", type="cli", models=("m",), options={"command": command}))
    broken = True

    def library(inputs):
        if broken:
            raise ZeroDivisionError("no luck")
        return "library"

    local_manager.register_backend("it", "hybrid", "It", HybridBackend({"sdk": library, "cli": tool}))
    info = await local_manager.probe("it")
    assert info.capabilities.side_effects
    assert info.capabilities.external
    assert (await local_manager.infer("chat", "m", "a b")).text == "a b "
    broken = False
    await local_manager.probe("it")
    assert (await local_manager.infer("chat", "m", "a b")).text == "library"
    await local_manager.aclose()
    await maker.close()


async def test_a_tool_among_the_parts_has_one_call_at_a_time(local_manager):
    maker = CliMaker(Secrets(environ={}), House("uia-me"))
    command = [sys.executable, FAKE, "hang", "hybrid"]
    tool = maker.build(BackendDescription(id="it", type="cli", models=("m",), options={"command": command}))
    made = HybridBackend({"sdk": lambda inputs: 1 / 0, "cli": tool})
    first = made.infer(InferenceRequest("chat", "m", "x"))
    async for event in first:
        if isinstance(event, Chunk):
            break
    second = made.infer(InferenceRequest("chat", "m", "x"))
    with pytest.raises(QueueFull, match="cli: works on as many requests as it may"):
        await anext(second)
    await first.aclose()
    await maker.close()


def test_it_takes_at_least_two(ways):
    with pytest.raises(BadRequest, match="at least two"):
        HybridBackend({"a": ways[0]})


async def test_one_server_by_http_and_websocket(make_server, local_manager):
    """The real thing: our own server by both of its doors, one of them shut under us."""
    server = await make_server()
    factory = BackendFactory(Secrets(environ={"MY_API_KEY": KEY}), EndpointPolicy(), "uia-me")
    description = await factory.complete(
        BackendDescription(
            id="both",
            type="hybrid",
            models=("echo",),
            options={
                "parts": [
                    {
                        "type": "websocket",
                        "endpoint": f"ws://127.0.0.1:{server.port}",
                        "api_key_env": "MY_API_KEY",
                    },
                    {"endpoint": f"{server.url}v1", "dialect": "openai", "api_key_env": "MY_API_KEY"},
                ]
            },
        )
    )
    local_manager.register_backend("both", "hybrid", "Both", factory.build(description))
    info = await local_manager.probe("both")
    assert info.reason == "by websocket"
    assert info.capabilities.protocols >= {"http", "websocket"}
    assert (await local_manager.infer("chat", "echo", "a b")).text == "a b "
    link = local_manager.get_backend("both").instance.parts[0]
    await link.backend.stop()
    link.down = "the socket is shut"
    assert (await local_manager.infer("chat", "echo", "c d")).text == "c d "
    await local_manager.aclose()
    await factory.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "options.parts is needed"),
        ({"parts": [{}, {}], "more": 1}, "options.parts is needed"),
        ({"parts": [{}]}, "must be 2 to 8"),
        ({"parts": [7, {}]}, "options.parts.0 must be an object"),
        ({"parts": [{"colour": 1}, {}]}, "options.parts.0.colour is unknown"),
        ({"parts": [{"endpoint": 7}, {}]}, "options.parts.0 does not fit"),
        ({"parts": [{"type": "hybrid"}, {}]}, "must not be hybrid again"),
        ({"parts": [{"type": "api"}, {}]}, "endpoint is missing"),
    ],
)
async def test_what_a_description_may_not_say(options, said):
    factory = BackendFactory(Secrets(environ={}), EndpointPolicy(), "uia-me")
    with pytest.raises(BadRequest, match=said):
        await factory.complete(BackendDescription(id="it", type="hybrid", options=options))
    await factory.close()


async def test_over_the_wire_it_is_kept_and_comes_back(make_server):
    async with ScriptedApi() as api, ScriptedApi() as other:
        for server in (api, other):
            server.lists("far")
        api.answers["POST", "/v1/chat/completions"] = (500, {"error": {"message": "out of order"}})
        other.answers["POST", "/v1/chat/completions"] = (200, words("from", " afar"))
        house = await make_server()
        description = BackendDescription(
            id="", type="hybrid", options={"parts": [{"endpoint": api.url}, {"endpoint": other.url}]}
        )
        info = await house.service.backends.add(description)
        assert (info.id, info.status) == ("hybrid-api", BackendStatus.HEALTHY)
        messages = [{"role": "user", "content": "x"}]
        assert (await house.manager.infer("chat", "far", messages=messages)).text == "from afar"
        kept = (await house.service.kept.store.backends.load())["hybrid-api"]
        assert [part["endpoint"] for part in kept.options["parts"]] == [f"{api.url}/v1", f"{other.url}/v1"]
        assert len(house.service._factory.build(kept).parts) == 2
