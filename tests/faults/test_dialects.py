"""Every dialect under every way to break: another backend answers, or the caller gets a typed error."""

import asyncio
import json
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from tests.upstreams.scripted_api import ScriptedApi, sse, words
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    InferenceError,
    NoBackendAvailable,
    RateLimited,
    StreamInterrupted,
)
from uia_lab.domain.events import Chunk

KEY = "sk-very-secret-0123456789"
MESSAGES = [{"role": "user", "content": "hi"}]


def ndjson(*values):
    return [json.dumps(value).encode() + b"\n" for value in values]


TEXT = [
    *({"choices": [{"index": 0, "text": text}]} for text in ("a", "b")),
    {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
]
LINES = [{"message": {"content": "a"}}, {"message": {"content": "b"}}]
RESPONSES = [{"response": "a"}, {"response": "b"}]
END = {"done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 2}
VECTORS = {"data": [{"index": 0, "embedding": [1.0, 2.0]}], "usage": {"prompt_tokens": 1}}


class Case(SimpleNamespace):
    """A dialect's endpoint, a good answer of it in pieces, and how it tells of an error inside one."""

    def ask(self, manager, **hints):
        inputs = {"messages": MESSAGES} if self.messages else {"inputs": "x"}
        return manager.stream(self.task, "m", **inputs, **hints)


def case(dialect, path, pieces, error, *, task="text-generation", messages=False, result="ab"):
    return Case(
        dialect=dialect, path=path, pieces=pieces, error=error,
        task=task, messages=messages, result=result, streams=len(pieces) > 1,
    )  # fmt: skip


def named(*events):
    """Server-sent events with their names, in one piece."""
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


def said(text):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def spoken(text):
    where = {"item_id": "m", "output_index": 0, "content_index": 0}
    return {"type": "response.output_text.delta", **where, "delta": text}


MESSAGE = [
    named(
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        said("a"),
    ),
    named(said("b")),
    named({"type": "content_block_stop", "index": 0}),
    named({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}),
    named({"type": "message_stop"}),
]
OUTPUT = {
    "type": "message",
    "id": "m",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "ab"}],
}
COMPLETED = {
    "id": "r", "status": "completed", "output": [OUTPUT], "usage": {"input_tokens": 1, "output_tokens": 2},
}  # fmt: skip
RESPONSE = [
    named({"type": "response.created", "response": {"id": "r", "status": "in_progress"}}, spoken("a")),
    named(spoken("b")),
    named({"type": "response.completed", "response": COMPLETED}),
]
OOM = {"error": {"message": "the engine is out of memory", "code": 500}}
CASES = {
    "chat": case("openai", "/v1/chat/completions", words("a", "b"), sse(OOM), messages=True),
    "completions": case("openai", "/v1/completions", sse(*TEXT), sse(OOM)),
    "prompt-as-chat": case("openai-chat", "/v1/chat/completions", words("a", "b"), sse(OOM)),
    "chat-at-once": case(
        "openai",
        "/v1/chat/completions",
        [json.dumps({"choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}]}).encode()],
        [json.dumps(OOM).encode()],
        messages=True,
    ),
    "anthropic": case(
        "anthropic",
        "/v1/messages",
        MESSAGE,
        [named({"type": "error", "error": {"type": "api_error", "message": "the engine is out of memory"}})],
        messages=True,
    ),
    "responses": case(
        "openai-responses",
        "/v1/responses",
        RESPONSE,
        [named({"type": "error", "code": "server_error", "message": "the engine is out of memory"})],
        messages=True,
    ),
    "ollama-chat": case(
        "ollama",
        "/v1/api/chat",
        ndjson(*LINES, END),
        ndjson({"error": "the engine is out of memory"}),
        messages=True,
    ),
    "ollama-generate": case(
        "ollama",
        "/v1/api/generate",
        ndjson(*RESPONSES, END),
        ndjson({"error": "the engine is out of memory"}),
    ),
    "embeddings": case(
        "openai",
        "/v1/embeddings",
        [json.dumps(VECTORS).encode()],
        [json.dumps(OOM).encode()],
        task="embeddings",
        result=[[1.0, 2.0]],
    ),
    "ollama-embed": case(
        "ollama",
        "/v1/api/embed",
        [b'{"embeddings": [[1.0, 2.0]]}'],
        [b'{"error": "the engine is out of memory"}'],
        task="embeddings",
        result=[[1.0, 2.0]],
    ),
    "tei-predict": case(
        "tei",
        "/v1/predict",
        [b'[[{"label": "pos", "score": 1.0}]]'],
        [json.dumps(OOM).encode()],
        task="text-classification",
        result=[{"label": "pos", "score": 1.0}],
    ),
}


@pytest.fixture
async def apis(manager):
    """Two servers of one dialect behind the manager; the first is asked before the second."""
    async with AsyncExitStack() as stack:
        factory = BackendFactory(Secrets(environ={"MY_KEY": KEY}), EndpointPolicy(), "uia-me")
        stack.push_async_callback(factory.close)
        first, second, other = [await stack.enter_async_context(ScriptedApi()) for _ in range(3)]

        def serve(dialect):
            for name, server, weight in (("first", first, 100.0), ("second", second, 1.0)):
                server.answers["POST", dialect.path] = (200, list(dialect.pieces))
                description = BackendDescription(
                    id=name,
                    type="api",
                    endpoint=f"{server.url}/v1",
                    dialect=dialect.dialect,
                    models=("m",),
                    tasks=(dialect.task,),
                    api_key_env="MY_KEY",
                )
                manager.register_backend(name, "api", name, factory.build(description), weight=weight)

        yield SimpleNamespace(serve=serve, first=first, second=second, other=other)
        await manager.aclose()


def breaks(fault, dialect, apis, before):
    """An answer that breaks in that way after some pieces of a good one."""
    pieces = dialect.pieces[:before]

    async def cut(request, response):
        for piece in pieces:
            await response.write(piece)
        request.transport.close()

    async def stall(request, response):
        for piece in pieces:
            await response.write(piece)
        await apis.first.hold()

    async def drip(request, response):
        for piece in pieces:
            await response.write(piece)
        for _ in range(2000):
            await response.write(b'"')
            await asyncio.sleep(0.02)

    async def flood(request, response):
        for piece in pieces:
            await response.write(piece)
        for _ in range(12):
            await response.write(b"x" * (1 << 20))

    target = {"Location": f"{apis.other.url}{dialect.path}"}
    return {
        "cut": (200, cut),
        "ended": (200, pieces),
        "stalled": (200, stall),
        "slow loris": (200, drip),
        "huge line": (200, flood),
        "malformed": (
            200,
            [
                *pieces,
                b'{"mess\n' if "/api/" in dialect.path else b'event: response.completed\ndata: {"cho\n\n',
            ],
        ),
        "error frame": (200, [*pieces, *dialect.error]),
        "rate limited": (429, {"error": {"message": "slow down"}}, {"retry-after": "7"}),
        "unavailable": (503, {"error": {"message": "overloaded"}}),
        "a page": (502, "<html>Bad Gateway</html>"),
        "redirect": (307, b"", target),
    }[fault]


SILENT = ("stalled", "slow loris")
AT_LENGTH = ("huge line", "stalled", "slow loris")
MID = ("cut", "ended", "stalled", "slow loris", "huge line", "malformed", "error frame")
FAULTS = (*MID, "rate limited", "unavailable", "a page", "redirect")


def each(faults, *, streamed):
    """Every dialect with every fault that can be told from a good answer."""
    pairs = [
        pytest.param(item, fault, id=f"{name}-{fault}")
        for name, item in CASES.items()
        for fault in faults
        # One body may be large, and may take the request's whole time.
        if item.streams or not (streamed or fault in AT_LENGTH)
    ]
    return pytest.mark.parametrize(("dialect", "fault"), pairs)


@each(FAULTS, streamed=False)
async def test_another_answers_in_silence(manager, apis, dialect, fault, impatient):
    apis.serve(dialect)
    apis.first.answers["POST", dialect.path] = breaks(fault, dialect, apis, 0)
    async with asyncio.timeout(20):
        result = await dialect.ask(manager).result()
    assert result.result == dialect.result
    assert [item.backend_id for item in result.attempts] == ["first", "second"]
    assert KEY not in str(result.attempts)
    # The key was for the first server; where that one pointed, nobody came.
    assert KEY in str(apis.first.asked[-1].headers)
    assert apis.other.asked == []


@each(FAULTS, streamed=False)
async def test_alone_the_error_is_typed(manager, apis, dialect, fault, impatient):
    apis.serve(dialect)
    apis.first.answers["POST", dialect.path] = breaks(fault, dialect, apis, 0)
    async with asyncio.timeout(20):
        with pytest.raises(InferenceError) as caught:
            await dialect.ask(manager, backend_id="first").result()
    error = caught.value
    kinds = {"rate limited": RateLimited, "unavailable": NoBackendAvailable}
    wanted = BackendTimeout if fault in SILENT else kinds.get(fault, BackendFailed)
    assert type(error) is wanted
    assert KEY not in error.message
    assert error.retry_after == (7 if fault == "rate limited" else None)


@each(MID, streamed=True)
async def test_after_content_it_is_an_interruption(manager, apis, dialect, fault, impatient):
    apis.serve(dialect)
    apis.first.answers["POST", dialect.path] = breaks(fault, dialect, apis, 1)
    seen = []

    async def read():
        async for event in dialect.ask(manager):
            seen.append(event)  # noqa: PERF401 - what came before the error counts

    async with asyncio.timeout(20):
        with pytest.raises(StreamInterrupted):
            await read()
    assert [event.delta.text for event in seen if isinstance(event, Chunk)] == ["a"]
    assert apis.second.asked == []
