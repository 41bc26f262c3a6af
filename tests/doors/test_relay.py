"""Bytes that need no translation pass from an upstream to a client, over real sockets."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.upstreams.byte_server import CUT, ENDLESS, HOLD, ByteServer
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
from uia_lab.domain.keys import Limits
from uia_lab.manager import attempt

DONE = b"data: [DONE]\n\n"


def frame(delta=None, reason=None, index=0, **more):
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": reason}]
    value = {"id": "theirs-1", "object": "chat.completion.chunk", "created": 7, "model": "their-model",
             "choices": choices, **more}  # fmt: skip
    return b"data: " + json.dumps(value).encode() + b"\n\n"


ROLE = frame({"role": "assistant", "content": ""})
HELLO, WORLD = frame({"content": "Hel"}), frame({"content": 'lo "error"\n\n'})
STOP = frame({}, "stop")
USAGE = frame(usage={"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
STREAM = (ROLE, HELLO, WORLD, STOP, USAGE, DONE)
WHOLE = json.dumps(
    {
        "id": "theirs-2",
        "object": "chat.completion",
        "model": "their-model",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
        "x_new": [1.0],
    },
    indent=1,
).encode()


@pytest.fixture
async def up(house):
    """Registers byte servers as backends of the house, the first asked first."""
    factory = BackendFactory(Secrets({}, {}), EndpointPolicy(), "uia-under-test")
    async with AsyncExitStack() as stack:

        async def up(*script, name="up", kind=b"text/event-stream", weight=1.0, capabilities=None, **fields):
            server = await stack.enter_async_context(ByteServer(*script, kind=kind))
            backend = factory.build(
                BackendDescription(
                    **{"dialect": "openai", **fields}, id=name, type="api", endpoint=server.url, models=("m",)
                )
            )
            house.manager.register_backend(
                name, "api", name, backend, capabilities or backend.capabilities, weight=weight
            )
            return server

        house.manager.set_strategy("round_robin")
        yield up
        await house.until_idle()
    for info in house.manager.list_backends():
        house.manager.unregister_backend(info.id)
    await factory.close()


async def read(house, **fields):
    async with house.chat("m", **fields) as response:
        return response, await response.read()


async def record(house, response):
    await house.until_idle()
    return await house.service.request_log.get(response.headers["x-request-id"])


async def test_a_stream_passes_byte_by_byte_and_is_accounted_for(house, up):
    server = await up(*STREAM)
    response, body = await read(house, stream=True, stream_options={"include_usage": True})
    assert body == b"".join(STREAM)
    assert response.headers["x-uia-backend"] == "up"
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert server.json["model"] == "m"
    kept = await record(house, response)
    assert (kept.outcome, kept.input_tokens, kept.output_tokens) == ("ok", 5, 2)
    assert (kept.estimated, kept.chunks) == (False, 2)
    assert 0 < kept.first_token_s <= kept.latency_s
    metrics = house.manager.get_backend("up").metrics
    assert (metrics.successful_requests, metrics.output_tokens, metrics.active_connections) == (1, 2, 0)


async def test_the_usage_that_only_we_asked_for_is_dropped(house, up):
    server = await up(*STREAM)
    response, body = await read(house, stream=True)
    assert body == b"".join(item for item in STREAM if item is not USAGE)
    assert server.json["stream_options"] == {"include_usage": True}
    assert (await record(house, response)).output_tokens == 2


async def test_a_usage_that_was_asked_for_and_not_told_is_estimated(house, up):
    await up(ROLE, HELLO, WORLD, STOP + DONE)
    _, body = await read(house, stream=True, stream_options={"include_usage": True})
    before, usage, after = body.partition(b"data: " + body.split(b"data: ")[-2])
    assert (before, after) == (ROLE + HELLO + WORLD + STOP, DONE)
    value = json.loads(usage[6:])
    assert (value["id"], value["model"], value["choices"]) == ("theirs-1", "their-model", [])
    assert (value["usage"]["completion_tokens"], value["usage"]["estimated"]) == (2, True)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["lf", "crlf"])
async def test_cut_at_every_byte_it_stays_the_same(house, up, newline):
    whole = b"".join((ROLE, b": comment\n\n", HELLO, STOP, DONE)).replace(b"\n", newline)
    server = await up()
    for at in range(1, len(whole)):
        server.script = (whole[:at], whole[at:])
        _, body = await read(house, stream=True)
        assert body == whole, at


async def test_what_comes_with_one_read_goes_with_one_write(house, up):
    gates = [asyncio.Event(), asyncio.Event()]
    await up(ROLE + HELLO, gates[0], WORLD * 50, gates[1], STOP + DONE)
    pieces = []
    async with house.chat("m", stream=True) as response:
        async for piece, ended in response.content.iter_chunks():
            assert ended
            pieces.append(piece)
            gates[len(pieces) > 1].set()
    assert pieces == [ROLE + HELLO, WORLD * 50, STOP + DONE]


async def test_two_choices_and_tool_calls_pass(house, up):
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    script = (
        ROLE, frame({"tool_calls": [call]}), HELLO, frame({"content": "b"}, index=1), STOP,
        frame({}, "tool_calls", index=1), USAGE, DONE,
    )  # fmt: skip
    server = await up(*script)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked = {"n": 2, "tools": tools, "stream_options": {"include_usage": True}}
    response, body = await read(house, stream=True, **asked)
    assert body == b"".join(script)
    assert server.json["tools"] == tools
    assert (await record(house, response)).outcome == "ok"
    # A choice that never ends is noticed.
    server.script = (ROLE, HELLO, frame({"content": "b"}, index=1), STOP, DONE)
    response, body = await read(house, stream=True, n=2)
    assert b"stream_interrupted" in body
    assert DONE not in body


async def test_the_body_is_edited_in_three_places_only(house, up):
    server = await up(*STREAM)
    house.manager.set_alias("nick", ["up:m"])
    text = (
        '{"model": "nick", "stream": true, "stream_options": {"x": 1.50}, "new_field": {"a": 1.0e0},'
        ' "messages": [{"role": "user", "content": "\\u00e9", "name": null}], "uia": {"priority": 3}}'
    )
    async with house.call("POST", "v1/chat/completions", "infer", data=text) as response:
        body = await response.read()
    assert body.startswith(ROLE), "the model has the name that the upstream gives it"
    asked = server.asked[-1]
    assert b'"new_field":{"a": 1.0e0}' in asked
    assert b'"messages":[{"role": "user", "content": "\\u00e9", "name": null}]' in asked
    assert server.json["model"] == "m"
    assert server.json["stream_options"] == {"x": 1.5, "include_usage": True}
    assert "uia" not in server.json


@pytest.mark.parametrize(
    "script",
    [
        (CUT,),
        (ROLE, CUT),
        (ROLE,),
        (ROLE, b'data: {"error": {"message": "oom", "code": 500}}\n\n'),
        (ROLE, b'event: error\ndata: {"message": "oom"}\n\n'),
        (ROLE, b"data: {nonsense\n\n"),
        (503, b"{}"),
        (b"",),
    ],
    ids=["cut", "cut after the role", "truncated", "error frame", "error event", "malformed", "503", "empty"],
)
async def test_before_the_first_content_another_takes_over_and_nothing_leaks(house, up, script):
    leak = (frame({"role": "assistant", "leak": "x"}), *script) if script[0] is ROLE else script
    first = await up(*leak, name="first", weight=100.0)
    await up(*STREAM, name="second")
    response, body = await read(house, stream=True)
    assert body == b"".join(item for item in STREAM if item is not USAGE)
    assert len(first.asked) == 1
    kept = await record(house, response)
    assert [(item.backend_id, item.outcome) for item in kept.attempts] == [
        ("first", "failed"),
        ("second", "ok"),
    ]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ((CUT,), "broke"),
        ((), "without its end"),
        ((b'data: {"error": {"message": "oom", "code": 500}}\n\n',), "oom"),
        ((WORLD + b'event: error\ndata: {"error": {"message": "oom"}}\n\n',), "oom"),
        ((b'data: {"choices": [{"index": 0, "del\n\n',), "malformed"),
        ((DONE,), "without a finish reason"),
    ],
    ids=["cut", "truncated", "error frame", "error event", "malformed", "no finish reason"],
)
async def test_after_it_the_stream_ends_with_an_error_event(house, up, script, said):
    await up(ROLE, HELLO, *script, name="first", weight=100.0)
    second = await up(*STREAM, name="second")
    response, body = await read(house, stream=True)
    assert body.startswith(ROLE + HELLO)
    passed, _, error = body.partition(b"event: error\ndata: ")
    assert passed in (ROLE + HELLO, ROLE + HELLO + WORLD)
    assert json.loads(error)["error"]["code"] == "stream_interrupted"
    assert said in json.loads(error)["error"]["message"]
    assert DONE not in body
    assert second.asked == []
    kept = await record(house, response)
    assert (kept.outcome, kept.error) == ("failed", "stream_interrupted")


async def test_a_slow_reader_holds_the_upstream_back(house, up):
    server = await up(ROLE, frame({"content": "x" * 10_000}), ENDLESS)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port, limit=1024)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: uia-test-key-of-infer\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    await reader.readline()
    before = -1
    async with asyncio.timeout(30):
        while before != server.written:
            before = server.written
            await asyncio.sleep(0.1)
    assert server.written < 30_000_000, "sockets and buffers hold some megabytes; nothing else may"
    # The client has not read for too long: it is dropped, and so is the upstream.
    await asyncio.wait_for(server.left.wait(), 30)
    writer.close()


async def test_a_client_that_leaves_frees_the_upstream_at_once(house, up):
    for stream, script in ((True, (ROLE, HELLO, HOLD)), (True, (ROLE, HOLD)), (False, (HOLD,))):
        server = await up(*script)
        task = asyncio.ensure_future(house.chat("m", stream=stream).__aenter__())
        async with asyncio.timeout(10):
            while not server.asked:
                await asyncio.sleep(0)
        if HELLO in script:
            (await task).close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(server.left.wait(), 10)
        await house.until_idle()
    assert house.manager.get_backend_status_report()["total_cancelled"] == 3


async def test_a_whole_answer_passes_as_it_is(house, up):
    server = await up(WHOLE, kind=b"application/json")
    response, body = await read(house)
    assert body == WHOLE
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["x-uia-backend"] == "up"
    assert "stream" not in server.json
    kept = await record(house, response)
    assert (kept.outcome, kept.input_tokens, kept.output_tokens) == ("ok", 4, 3)
    metrics = house.manager.get_backend("up").metrics
    assert metrics.time_to_first_token_ms is None, "nobody knows when it was there"


@pytest.mark.parametrize(
    "script",
    [
        (WHOLE[:40],),
        (WHOLE[:40], CUT),
        (b'{"error": {"message": "x"}}',),
        (b'{"choices": []}',),
        (500, b"oops"),
    ],
    ids=["truncated", "cut", "error", "no choice", "500"],
)
async def test_a_whole_answer_that_is_none_is_asked_for_elsewhere(house, up, script):
    await up(*script, name="first", weight=100.0, kind=b"application/json")
    await up(WHOLE, name="second", kind=b"application/json")
    response, body = await read(house)
    assert (response.status, body) == (200, WHOLE)


async def test_a_silent_backend_is_left_when_its_probes_fail(house, up, monkeypatch):
    monkeypatch.setattr(attempt, "FIRST_CHUNK_S", 0.1)
    first = await up(HOLD, name="first", weight=100.0)
    await up(WHOLE, name="second", kind=b"application/json")
    task = asyncio.ensure_future(read(house))
    async with asyncio.timeout(10):
        while not first.asked:
            await asyncio.sleep(0)
    entry = house.manager.router.registry.get("first")
    await asyncio.sleep(0.5)
    assert not task.done(), "an answer that comes at once may take its time"
    house.manager.router.probed(entry, Probe(BackendStatus.OFFLINE, "nobody answers"), house.manager.clock())
    response, body = await asyncio.wait_for(task, 10)
    assert (response.status, body) == (200, WHOLE)


async def test_an_upstream_that_answers_in_the_other_way(house, up):
    server = await up(WHOLE)
    _, body = await read(house, stream=True)
    assert b'"content":"Hi."' in body
    assert body.endswith(DONE)
    server.script = STREAM
    _, body = await read(house)
    assert json.loads(body)["choices"][0]["message"]["content"] == 'Hello "error"\n\n'


async def test_a_stream_without_the_mark_of_its_end_gets_it(house, up):
    await up(ROLE, HELLO, STOP, USAGE)
    response, body = await read(house, stream=True)
    assert body == ROLE + HELLO + STOP + DONE
    assert (await record(house, response)).output_tokens == 2


async def test_tokens_are_charged_to_a_limited_key(house, up):
    key, made = await house.service.keys.create("small", ["infer"], Limits(token_budget=100))
    await up(*STREAM)
    headers = {"Authorization": f"Bearer {key}"}
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    url = house.server.url + "v1/chat/completions"
    async with house.session.post(url, json=body, headers=headers) as response:
        await response.read()
    await house.until_idle()
    assert house.service.keys.get(made.id).tokens_used == 7


async def test_prompts_that_are_logged_have_their_answers(house, up):
    house.manager.log_prompts = True
    records = []
    house.manager.on_record = records.append
    await up(*STREAM)
    await read(house, stream=True)
    await house.until_idle()
    assert records[0].result == 'Hello "error"\n\n'


class Continuing:
    """Goes on with the words of a broken answer."""

    capabilities = BackendCapabilities(
        {"text-generation"}, {"m"}, supports_streaming=True, resume=True, model_digest={"m": "d"}
    )

    async def start(self): ...

    async def stop(self): ...

    async def probe(self):
        return Probe(BackendStatus.HEALTHY, "here")

    async def infer(self, request):
        assert request.resumed.text == 'Hello "error"\n\n'
        yield Started("")
        yield Chunk(0, Text(" and on"))
        yield Finished(" and on", Usage(7, 2))


async def test_a_broken_stream_goes_on_under_the_first_id(house, up):
    await up(ROLE, HELLO, WORLD, CUT, name="first", weight=100.0, capabilities=Continuing.capabilities)
    house.manager.register_backend("second", "gpu", "second", Continuing())
    response, body = await read(house, stream=True, stream_options={"include_usage": True})
    assert body.startswith(ROLE + HELLO + WORLD)
    rest = body.removeprefix(ROLE + HELLO + WORLD)
    *events, end, nothing = rest.split(b"\n\n")
    assert (end, nothing) == (b"data: [DONE]", b"")
    values = [json.loads(item.removeprefix(b"data: ")) for item in events]
    assert {value["id"] for value in values} == {"theirs-1"}
    assert values[0]["choices"][0]["delta"] == {"content": " and on"}
    assert values[-2]["choices"][0]["finish_reason"] == "stop"
    assert values[-1]["usage"]["prompt_tokens"] == 5, "the prompt counts once"
    assert (await record(house, response)).outcome == "ok"


async def test_completions_pass_too(house, up):
    def piece(text, reason=None):
        choice = {"index": 0, "text": text, "finish_reason": reason}
        return b"data: " + json.dumps({"id": "c", "choices": [choice]}).encode() + b"\n\n"

    server = await up(piece("a"), piece("b"), piece("", "length"), USAGE, DONE)
    asked = {"model": "m", "prompt": "x", "stream": True}
    async with house.call("POST", "v1/completions", "infer", json=asked) as response:
        assert await response.read() == piece("a") + piece("b") + piece("", "length") + DONE
    assert server.json["prompt"] == "x"


async def test_a_door_of_another_form_gets_decoded_events(house, up):
    server = await up(*STREAM, dialect="openai-chat")
    asked = {"model": "m", "prompt": "x", "stream": True}
    async with house.call("POST", "v1/completions", "infer", json=asked) as response:
        body = await response.text()
    assert server.json["messages"] == [{"role": "user", "content": "x"}]
    values = [json.loads(item[6:]) for item in body.split("\n\n")[:-2]]
    assert {value["object"] for value in values} == {"text_completion"}
    assert "".join(value["choices"][0]["text"] for value in values) == 'Hello "error"\n\n'


async def test_small_pieces_are_not_held_for_an_acknowledgement(house, up):
    """Nagle's algorithm with delayed acknowledgements holds a second small piece for 40 ms."""
    gates = [asyncio.Event() for _ in range(20)]
    last = asyncio.Event()
    script = [step for gate in gates for step in (gate, HELLO)]
    await up(ROLE + HELLO, *script, last, STOP, DONE)
    waits = []
    async with house.chat("m", stream=True) as response:
        await response.content.readany()
        for gate in gates:
            before = asyncio.get_running_loop().time()
            gate.set()
            await response.content.readany()
            waits.append(asyncio.get_running_loop().time() - before)
        sockets = [connection.stream.socket for connection in house.server._server._connections]
        assert any(item.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for item in sockets)
        last.set()
        await response.read()
    assert min(waits) < 0.035
    assert sorted(waits)[len(waits) // 2] < 0.35


async def test_a_connection_serves_again_after_streams(house, up):
    await up(*STREAM)
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        for stream in (True, False, True):
            body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}]}
            headers = {"Authorization": "Bearer uia-test-key-of-infer"}
            url = house.server.url + "v1/chat/completions"
            async with session.post(url, json=body, headers=headers) as response:
                assert response.status == 200
                await response.read()
