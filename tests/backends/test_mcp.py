"""MCP servers as backends: over stdio, over HTTP, and our own door."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.upstreams.uia_server import KEY, uia_servers
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends import mcp_http
from uia_lab.backends.client_session import SharedSession
from uia_lab.backends.mcp_maker import McpMaker
from uia_lab.backends.mcp_options import ToolCall
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    InferenceError,
    LoopDetected,
    ModelNotFound,
    NotAllowed,
    Unauthenticated,
    Unsupported,
)
from uia_lab.domain.events import Chunk, Finished
from uia_lab.domain.requests import InferenceRequest

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

TOOLS = [sys.executable, str(Path(__file__).parents[1] / "upstreams" / "mcp_tools.py")]


def tool(name, **fields):
    return {"tool": name, "arguments": {"text": "$prompt"}, **fields}


def generation(name, **fields):
    return {"text-generation": tool(name, **fields)}


@pytest.fixture
async def build():
    secrets = Secrets(environ={"TOOLS_API_KEY": "sk-of-the-tools", "PEER_API_KEY": KEY})
    session = SharedSession(EndpointPolicy())
    maker = McpMaker(secrets, EndpointPolicy(), session, "uia-me")
    built = []

    async def build(endpoint=None, **fields):
        described = BackendDescription(id="tools", type="mcp", endpoint=endpoint, **fields)
        backend = maker.build(await maker.complete(described))
        built.append(backend)
        # Why one does not start is told by its probe too.
        with contextlib.suppress(InferenceError):
            await backend.start()
        return backend

    yield build
    for backend in built:
        await backend.stop()
    await session.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-mcp")]


@pytest.fixture
async def peer():
    async with uia_servers() as make:
        yield await make()


def stdio(build, tools, **options):
    return build(options={"command": TOOLS, "tools": tools, **options})


async def ask(backend, inputs="hello", task="text-generation", model=None, messages=None, **fields):
    request = InferenceRequest(
        task, model, inputs=None if messages else inputs, messages=messages, stream=True, **fields
    )
    async with asyncio.timeout(30):
        return [event async for event in backend.infer(request)]


async def child(backend):
    [event] = [event for event in await ask(backend) if isinstance(event, Finished)]
    return psutil.Process(int(event.result))


async def gone(process):
    async with asyncio.timeout(20):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)


async def test_a_tool_of_a_server_that_is_started(build):
    shout = tool("shout") | {"arguments": {"text": "$prompt", "times": "$parameters.times"}}
    backend = await stdio(build, {"chat": shout, "embeddings": {
        "tool": "embed", "arguments": {"texts": "$inputs"}, "result": "vectors",
    }})  # fmt: skip
    found = await backend.probe()
    assert found.status is BackendStatus.HEALTHY
    assert found.reason.startswith("connected to tools of a test, MCP 2026")
    assert found.models == {"tools"}
    assert found.capabilities.supported_tasks == {"text-generation", "text-embedding"}
    _, chunk, end = await ask(backend, parameters={"times": 2})
    assert chunk.delta.text == end.result == "HELLO HELLO"
    assert (await ask(backend, parameters={}))[-1].result == "HELLO"
    said = [
        {"role": "system", "content": "be loud"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert (await ask(backend, messages=said))[-1].result == "SYSTEM: BE LOUD\n\nUSER: HI"
    assert (await ask(backend, ["ab", "c"], "text-embedding"))[-1].result == [[2, 1], [1, 1]]


async def test_progress_is_the_answer_in_pieces_where_that_is_said(build):
    backend = await stdio(build, generation("count", stream=True))
    events = await ask(backend, "one two three")
    assert [event.delta.text for event in events if isinstance(event, Chunk)] == ["one ", "two ", "three "]
    assert events[-1].result == "one two three "
    whole = await stdio(build, generation("count"))
    assert [event.delta.text for event in await ask(whole, "one two") if isinstance(event, Chunk)] == [
        "one two "
    ]


async def test_what_the_tools_say_of_themselves_is_believed_unless_somebody_says_otherwise(build):
    careful, wild = await stdio(build, generation("shout")), await stdio(build, generation("count"))
    assert careful.capabilities.side_effects
    assert not (await careful.probe()).capabilities.side_effects
    assert (await wild.probe()).capabilities.side_effects
    said = await stdio(build, generation("count"), side_effects=False, external=False)
    assert not said.capabilities.side_effects
    assert said.capabilities.external is False


async def test_the_child_sees_harmless_variables_and_its_own_key(build, monkeypatch):
    monkeypatch.setenv("UIA_LAB_TOKEN", "uia-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    listed = {
        "command": TOOLS,
        "tools": {"token-classification": tool("environment")},
        "environment": {"MODE": "test"},
    }
    listed["tools"]["token-classification"] |= {"arguments": {"text": "TOOLS_API_KEY"}, "result": "result"}
    backend = await build(options=listed, api_key_env="TOOLS_API_KEY")
    names = (await ask(backend, "x", "token-classification"))[-1].result
    assert names[-1] == "sk-of-the-tools"
    assert {"PATH", "MODE", "TOOLS_API_KEY"} <= set(names)
    assert not {"UIA_LAB_TOKEN", "OPENAI_API_KEY"} & set(names)


async def test_errors_are_typed_and_the_connection_goes_on(build):
    backend = await stdio(build, generation("break_down"))
    for _ in range(2):
        with pytest.raises(BackendFailed, match="no hello today"):
            await ask(backend)
    assert (await backend.probe()).status is BackendStatus.HEALTHY
    with pytest.raises(Unsupported, match="no tool is named for summarization"):
        await ask(backend, task="summarization")
    missing = await stdio(build, generation("whisper"))
    found = await missing.probe()
    assert found.status is BackendStatus.UNHEALTHY
    assert "has no tool whisper; its tools: break_down, count" in found.reason
    unmapped = await build(options={"command": TOOLS})
    assert "say in options.tools which of them does which task" in (await unmapped.probe()).reason
    vectors = await stdio(build, {"embeddings": tool("shout")})
    with pytest.raises(BackendFailed, match="no JSON"):
        await ask(vectors, "x", "text-embedding")


async def test_a_server_that_dies_is_started_again(build):
    backend = await stdio(build, generation("pid"))
    first = await child(backend)
    first.kill()
    await gone(first)
    with pytest.raises(InferenceError):
        await backend.probe()
    assert (await backend.probe()).status is BackendStatus.HEALTHY
    second = await child(backend)
    assert second.pid != first.pid
    await backend.stop()
    await gone(second)


async def test_a_server_that_dies_under_a_call_ends_it_and_serves_again(build):
    backend = await stdio(build, generation("die"))
    with pytest.raises(BackendFailed):
        await ask(backend)
    async with asyncio.timeout(30):
        while True:
            try:
                if (await backend.probe()).status is BackendStatus.HEALTHY:
                    break
            except InferenceError:
                continue


async def test_a_frozen_server_is_killed_with_its_group_at_stop(build):
    backend = await stdio(build, generation("pid"))
    process = await child(backend)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await backend.probe()
    async with asyncio.timeout(10):
        await backend.stop()
    await gone(process)


async def test_a_frozen_server_is_replaced_unless_it_works_on_something(build, monkeypatch):
    monkeypatch.setattr("uia_lab.backends.mcp_link.BEAT_S", 0.2)
    backend = await stdio(build, {**generation("hang"), "embeddings": tool("pid")})
    first = psutil.Process().children()[-1]
    call = asyncio.create_task(ask(backend))
    async with asyncio.timeout(20):
        while not backend._calls:
            await asyncio.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    with pytest.raises(BackendFailed, match="a ping within"):
        await backend.probe()
    assert first.is_running(), "it may be busy"
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    async with asyncio.timeout(20):
        while backend._calls:
            await asyncio.sleep(0.01)
    with pytest.raises(BackendFailed, match="a ping within"):
        await backend.probe()
    await gone(first)
    monkeypatch.undo()
    assert (await backend.probe()).status is BackendStatus.HEALTHY


async def test_a_call_that_nobody_waits_for_is_cancelled_there(build):
    backend = await stdio(build, generation("hang"))
    await backend.probe()
    events = backend.infer(InferenceRequest("chat", inputs="x"))
    await anext(events)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await anext(events)
    await events.aclose()
    # The connection is none the worse.
    assert (await backend.probe()).status is BackendStatus.HEALTHY
    running = asyncio.create_task(ask(backend))
    await asyncio.sleep(0)
    await backend.stop()
    with pytest.raises(InferenceError):
        await running


async def test_why_a_server_does_not_start_is_told(build):
    refusing = await build(options={"command": [*TOOLS, "refuse"], "tools": generation("shout")})
    with pytest.raises(BackendFailed, match="it said: the database is not there"):
        await refusing.probe()
    absent = await build(options={"command": ["/nowhere/at/all"], "tools": generation("shout")})
    with pytest.raises(BackendFailed, match="No such file"):
        await absent.probe()


async def test_what_a_server_says_shows_no_key(build):
    code = "import os, sys; sys.exit('x' * 480 + ' bad key ' + os.environ['TOOLS_API_KEY'])"
    backend = await build(
        options={"command": [sys.executable, "-c", code], "tools": generation("shout")},
        api_key_env="TOOLS_API_KEY",
    )
    with pytest.raises(BackendFailed, match="bad key <key>"):
        await backend.probe()
    assert backend._failed(ToolCall("shout", {}), "no sk-of-the-tools").message == "shout: no <key>"


async def test_an_answer_over_http_is_bounded(build, monkeypatch):
    async def endless(request):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65_536)
        return response

    monkeypatch.setattr(mcp_http, "LARGEST_BODY", 1 << 20)
    application = web.Application()
    application.router.add_post("/mcp", endless)
    async with TestServer(application) as server:
        backend = await build(str(server.make_url("/mcp")), options={"tools": generation("shout")})
        async with asyncio.timeout(20):
            with pytest.raises(BackendFailed):
                await backend.probe()


async def test_our_own_door_is_asked_without_a_mapping(build, peer):
    backend = await build(peer.url + "mcp", api_key_env="PEER_API_KEY")
    found = await backend.probe()
    assert found.status is BackendStatus.HEALTHY
    assert found.models == {"echo", "gated", "vectors"}
    assert found.capabilities.supported_tasks == {"text-generation", "text-embedding"}
    assert not found.capabilities.side_effects
    events = await ask(backend, "a b c", model="echo", parameters={"max_tokens": 9})
    assert [event.delta.text for event in events if isinstance(event, Chunk)] == ["a ", "b ", "c "]
    assert events[-1].result == "a b c "
    assert events[-1].usage.total_tokens
    chat = [{"role": "user", "content": "in a chat"}]
    assert (await ask(backend, model="echo", messages=chat))[-1].result == "in a chat "
    vectors = await ask(backend, ["ab"], "text-embedding", "vectors")
    assert vectors[-1].result == [[2, 1]]
    with pytest.raises(ModelNotFound):
        await ask(backend, model="nobody")
    narrowed = await build(peer.url + "mcp", api_key_env="PEER_API_KEY", tasks=("text-embedding",))
    assert (await narrowed.probe()).models == {"vectors"}


async def test_the_hop_guard_refuses_circles_in_both_directions(build, peer, monkeypatch):
    backend = await build(peer.url + "mcp", api_key_env="PEER_API_KEY")
    with pytest.raises(LoopDetected):
        await ask(backend, model="echo", via=(peer.manager.instance_id,))
    with pytest.raises(LoopDetected):
        await ask(backend, model="echo", via=("a", "b", "c", "d"))
    assert (await ask(backend, model="echo", via=("a", "b", "c")))[-1].result == "hello "
    # The service is asked to ask itself.
    description = BackendDescription(
        id="me", type="mcp", endpoint=peer.url + "mcp", api_key_env="OWN_API_KEY"
    )
    monkeypatch.setenv("OWN_API_KEY", KEY)
    info = await peer.service.backends.add(description)
    assert info.status is BackendStatus.OFFLINE
    assert "leads back to this very instance" in info.reason


async def test_a_closed_answer_ends_the_request_there(build, peer):
    backend = await build(peer.url + "mcp", api_key_env="PEER_API_KEY")
    events = backend.infer(InferenceRequest("chat", "gated", inputs="x", stream=True))
    await anext(events)
    assert (await anext(events)).delta.text == "begun "
    await events.aclose()
    async with asyncio.timeout(20):
        while peer.manager.running:
            await asyncio.sleep(0.01)
    assert peer.manager.get_backend_status_report()["total_cancelled"] == 1


async def test_a_server_over_http_dies_and_recovers(build):
    async with uia_servers() as make:
        first = await make()
        backend = await build(first.url + "mcp", api_key_env="PEER_API_KEY")
        assert (await backend.probe()).status is BackendStatus.HEALTHY
        call = asyncio.create_task(ask(backend, model="gated"))
        async with asyncio.timeout(20):
            while not first.manager.running:
                await asyncio.sleep(0.01)
        await first.stop()
        with pytest.raises(InferenceError):
            await call
        with pytest.raises(InferenceError):
            await backend.probe()
        await make(first.port)
        assert (await backend.probe()).status is BackendStatus.HEALTHY
        assert (await ask(backend, model="echo"))[-1].result == "hello "


async def test_a_session_that_its_server_does_not_end_is_left(build, monkeypatch):
    monkeypatch.setattr("uia_lab.backends.mcp_http.GOODBYE_S", 0.1)
    asked_to_end = asyncio.Event()

    async def answer(request):
        if request.method == "DELETE":
            asked_to_end.set()
            await asyncio.Event().wait()
        if request.method == "GET":
            return web.Response(status=405)
        message = await request.json()
        if "id" not in message:
            return web.Response(status=202)
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] != "initialize":
            return web.json_response({**reply, "error": {"code": -32601, "message": "no"}})
        about = {"name": "old", "version": "1"}
        greeting = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": about}
        return web.json_response({**reply, "result": greeting}, headers={"mcp-session-id": "s"})

    app = web.Application()
    app.router.add_route("*", "/mcp", answer)
    async with TestServer(app) as server:
        backend = await build(str(server.make_url("/mcp")))
        async with asyncio.timeout(20):
            await backend.stop()
        assert asked_to_end.is_set()


async def test_a_wrong_key_and_a_server_that_is_none(build, peer):
    with pytest.raises(Unauthenticated, match="NOT_SET_API_KEY is not set"):
        await build(peer.url + "mcp", api_key_env="NOT_SET_API_KEY")
    stranger = await build(peer.url + "mcp")
    with pytest.raises(Unauthenticated, match="does not take the key"):
        await stranger.probe()
    nowhere = await build("http://127.0.0.1:9/mcp")
    with pytest.raises(BackendFailed, match=r"127\.0\.0\.1:9"):
        await nowhere.probe()
    with pytest.raises(NotAllowed, match="metadata"):
        await build("http://169.254.169.254/mcp")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "endpoint"),
        ({"endpoint": "http://h/mcp", "options": {"command": ["x"]}}, "options.command"),
        ({"endpoint": "ws://h/mcp"}, "endpoint"),
        ({"endpoint": "http://h/mcp", "options": {"environment": {"A": "b"}}}, "options.environment"),
        ({"endpoint": "http://h/mcp", "options": {"tool": {}}}, "options.tool"),
        ({"endpoint": "http://h/mcp", "dialect": "openai"}, "dialect"),
        ({"options": {"command": "rm -rf /"}}, "options.command"),
        ({"options": {"command": []}}, "options.command"),
        ({"options": {"command": ["a\0b"]}}, "options.command"),
        ({"options": {"command": [" "]}}, "options.command"),
        ({"options": {"command": ["x"], "environment": {"MY_TOKEN": "t"}}}, "options.environment.MY_TOKEN"),
        ({"options": {"command": ["x"], "environment": {"A=B": "t"}}}, "options.environment"),
        ({"options": {"command": ["x"], "environment": [1]}}, "options.environment"),
        ({"options": {"command": ["x"], "tools": []}}, "options.tools"),
        ({"options": {"command": ["x"], "tools": {"dance": {"tool": "t"}}}}, "task"),
        ({"options": {"command": ["x"], "tools": {"chat": {}}}}, "options.tools.chat"),
        (
            {"options": {"command": ["x"], "tools": {"chat": {"tool": "t", "argument": {}}}}},
            "options.tools.chat",
        ),
        (
            {"options": {"command": ["x"], "tools": {"chat": {"tool": "t", "arguments": {"a": "$all"}}}}},
            "options.tools.chat",
        ),
        (
            {"options": {"command": ["x"], "tools": {"chat": {"tool": "t", "result": "a..b"}}}},
            "options.tools.chat",
        ),
        (
            {"options": {"command": ["x"], "tools": {"chat": {"tool": "t", "stream": 1}}}},
            "options.tools.chat",
        ),
        ({"options": {"command": ["x"], "side_effects": "no"}}, "options.side_effects"),
        (
            {"options": {"command": ["x"], "tools": {"chat": {"tool": "t"}}}, "tasks": ("text-embedding",)},
            "tasks",
        ),
    ],
)
async def test_what_is_wrong_in_a_description_is_named(fields, param):
    maker = McpMaker(Secrets(), EndpointPolicy(), SharedSession(EndpointPolicy()), "uia-me")
    with pytest.raises(BadRequest) as caught:
        await maker.complete(BackendDescription(id="x", type="mcp", **fields))
    assert caught.value.param == param


async def test_mcp_servers_can_be_switched_off():
    session = SharedSession(EndpointPolicy())
    maker = McpMaker(Secrets(), EndpointPolicy(), session, "uia-me", enabled=False)
    with pytest.raises(Unsupported, match="enable_mcp"):
        await maker.complete(BackendDescription(id="x", type="mcp", options={"command": ["x"]}))


def test_an_id_is_made_of_what_there_is():
    maker = McpMaker(Secrets(), EndpointPolicy(), SharedSession(EndpointPolicy()), "uia-me")
    for fields, stem in (
        ({"endpoint": "http://127.0.0.1:8000/mcp"}, "mcp-127.0.0.1:8000"),
        ({"options": {"command": ["/usr/bin/server-of-tools.py"]}}, "mcp-server-of-tools"),
        ({"endpoint": "http://[::1"}, "mcp"),
    ):
        assert maker.stem(BackendDescription(id="", type="mcp", **fields)) == stem


async def test_neither_keys_nor_sessions_nor_each_request_are_in_the_log(build, peer, caplog):
    caplog.set_level("INFO")
    backend = await build(peer.url + "mcp", api_key_env="PEER_API_KEY")
    await backend.probe()
    await ask(backend, model="echo")
    assert "HTTP Request" not in caplog.text
    assert "session ID" not in caplog.text
    assert KEY not in caplog.text
