"""Anthropic's official client against the door of its dialect, as its users would use it."""

import json

import anthropic
import pytest

from uia_lab.domain.errors import BackendFailed, NoBackendAvailable
from uia_lab.domain.events import Chunk, Finished, Reasoning, Text, ToolCall, Usage

HELLO = [{"role": "user", "content": "one two"}]
WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
THOUGHT = [
    Chunk(0, Reasoning("Let me ")),
    Chunk(1, Reasoning("look.")),
    Chunk(2, Reasoning("", "anthropic:seal")),
    Chunk(3, Text("I look ")),
    Chunk(4, Text("it up.")),
    Chunk(5, ToolCall(0, "call_1", "weather")),
    Chunk(6, ToolCall(0, arguments='{"city": "Ri')),
    Chunk(7, ToolCall(0, arguments='ga"}')),
    Chunk(8, ToolCall(1, "call_2", "weather", '{"city": "Oslo"}')),
    Finished("I look it up.", Usage(30, 12, cached_tokens=20, cache_creation_tokens=4), "tool_calls"),
]
MIXED = [
    Chunk(0, ToolCall(0, "call_1", "weather", '{"city":')),
    Chunk(1, ToolCall(1, "call_2", "weather", '{"city":')),
    Chunk(2, ToolCall(0, arguments='"Riga"}')),
    Chunk(3, ToolCall(1, arguments='"Oslo"}')),
    Finished("", Usage(30, 12), "tool_calls"),
]


@pytest.fixture
async def client(house):
    url = house.server.url.rstrip("/")
    async with anthropic.AsyncAnthropic(
        api_key="uia-test-key-of-admin", base_url=url, max_retries=0
    ) as client:
        yield client


def ask(client, model="echo", **fields):
    return client.messages.create(**({"model": model, "max_tokens": 64, "messages": HELLO} | fields))


async def test_a_message(client, house):
    raw = await client.messages.with_raw_response.create(
        model="echo", max_tokens=9, messages=HELLO, system="Be brief."
    )
    message = await raw.parse()
    assert [block.text for block in message.content] == ["one two "]
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", "echo")
    assert message.usage.output_tokens == 2
    assert message.id.startswith("msg_")
    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["x-uia-backend"] == "echo"


async def test_the_key_in_its_own_header(house):
    body = {"model": "echo", "max_tokens": 5, "messages": HELLO}
    headers = {"x-api-key": "uia-test-key-of-infer", "anthropic-version": "2023-06-01"}
    async with house.call("POST", "v1/messages", None, json=body, headers=headers) as response:
        assert response.status == 200


async def test_a_stream_of_text(client):
    async with client.messages.stream(model="echo", max_tokens=9, messages=HELLO) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert text == "one two "
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 2
    assert message.usage.input_tokens > 0


async def test_the_events_come_in_the_order_of_the_dialect(client):
    stream = await ask(client, stream=True)
    types = [event.type async for event in stream]
    assert types == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def check(message):
    thinking, text, first, second = message.content
    assert (thinking.thinking, thinking.signature) == ("Let me look.", "seal")
    assert text.text == "I look it up."
    assert (first.id, first.name, first.input) == ("call_1", "weather", {"city": "Riga"})
    assert (second.id, second.input) == ("call_2", {"city": "Oslo"})
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (
        6,
        20,
        4,
    )
    assert usage.output_tokens == 12


async def test_tools_and_thinking_whole_and_streamed(client, scripted):
    scripted.script = THOUGHT
    fields = {
        "model": "scripted",
        "max_tokens": 4096,
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "stop_sequences": ["END"],
        "extra_body": {"top_k": 7},
        "extra_headers": {"anthropic-beta": "some-2026"},
        "metadata": {"user_id": "u-1"},
    }
    await check(await client.messages.create(**fields))
    async with client.messages.stream(**fields) as stream:
        await check(await stream.get_final_message())
    for asked in scripted.asked:
        given = asked.parameters
        assert given["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]
        assert (given["tool_choice"], given["parallel_tool_calls"]) == ("required", False)
        assert (given["stop"], given["top_k"], given["user"]) == (["END"], 7, "u-1")
        assert (given["max_tokens"], given["reasoning_effort"]) == (4096, "low")
        assert (asked.wire.dialect, asked.wire.headers) == ("anthropic", {"anthropic-beta": "some-2026"})


async def test_calls_whose_pieces_come_mixed(client, scripted):
    scripted.script = MIXED
    fields = {"model": "scripted", "max_tokens": 64, "messages": HELLO, "tools": [WEATHER]}
    whole = await client.messages.create(**fields)
    async with client.messages.stream(**fields) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        calls = [(block.id, block.input) for block in message.content]
        assert calls == [("call_1", {"city": "Riga"}), ("call_2", {"city": "Oslo"})]
        assert message.stop_reason == "tool_use"


async def test_what_cannot_be_shown_has_failed_for_client_and_log(client, scripted):
    """A call that goes on after other words: streamed there is no place for it, whole there is."""
    scripted.script = [MIXED[0], Chunk(1, Text("so")), MIXED[2], MIXED[-1]]
    scripted.manager.on_record = (records := []).append
    fields = {"model": "scripted", "max_tokens": 64, "messages": HELLO, "tools": [WEATHER]}
    with pytest.raises(anthropic.APIStatusError, match="tool call"):
        async with client.messages.stream(**fields) as stream:
            await stream.get_final_message()
    message = await client.messages.create(**fields)
    assert [block.type for block in message.content] == ["tool_use", "text"]
    await scripted.until_idle()
    assert [(record.outcome, record.error) for record in records] == [
        ("failed", "backend_failed"), ("ok", None)
    ]  # fmt: skip
    totals = scripted.manager.totals
    assert (totals.total, totals.ok, totals.failed, totals.in_flight) == (2, 1, 1, 0)


async def test_a_conversation_with_tool_results_and_an_image(client, scripted):
    scripted.script = [Chunk(0, Text("Sunny")), Finished("Sunny", Usage(1, 1), "stop", stop_sequence="END")]
    image = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    message = await ask(
        client,
        "scripted",
        system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
        messages=[
            {"role": "user", "content": [{"type": "image", "source": image}, {"type": "text", "text": "?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Riga"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "12 degrees"},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    system, seen, said, result, last = scripted.asked[0].messages
    assert system == {"role": "system", "content": "A\n\nB"}
    assert seen["content"][0] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    assert said["reasoning_content"] == "hm"
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "Riga"}
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"}
    assert last == {"role": "user", "content": "So?"}


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"model": "gpt-9"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"extra_body": {"temperature": 1.5}}, anthropic.BadRequestError, "temperature"),
        ({"tools": [WEATHER]}, anthropic.BadRequestError, "tools"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            anthropic.BadRequestError,
            "web_",
        ),
        ({"model": "crashes"}, anthropic.InternalServerError, "api_error"),
    ],
)
async def test_errors_are_the_typed_ones(client, fields, kind, words):
    with pytest.raises(kind) as caught:
        await ask(client, **fields)
    assert caught.value.body["type"] == "error"
    assert words in json.dumps(caught.value.body)
    assert caught.value.request_id == caught.value.body["request_id"]


async def test_strangers_and_the_unentitled_get_the_envelope_too(client):
    with pytest.raises(anthropic.AuthenticationError) as stranger:
        await ask(client.with_options(api_key="sk-ant-nobody"))
    assert stranger.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.PermissionDeniedError) as reader:
        await ask(client.with_options(api_key="uia-test-key-of-read"))
    assert reader.value.body["error"]["type"] == "permission_error"


async def test_an_overloaded_upstream_is_called_so(client, scripted):
    scripted.script = [NoBackendAvailable("everybody is busy", retry_after=7)]
    with pytest.raises(anthropic.APIStatusError) as caught:
        await ask(client, "scripted")
    assert (caught.value.status_code, caught.value.body["error"]["type"]) == (503, "overloaded_error")


async def test_a_broken_stream_raises(client, scripted):
    scripted.script = [Chunk(0, Text("begun ")), BackendFailed("the wheel came off")]
    stream = await ask(client, "scripted", stream=True)
    for expected in ("message_start", "content_block_start", "content_block_delta"):
        assert (await anext(stream)).type == expected
    with pytest.raises(anthropic.APIStatusError, match="wheel"):
        await anext(stream)


async def test_a_slow_first_token_gets_pings_meanwhile(house):
    body = {"model": "gated", "max_tokens": 5, "stream": True, "messages": HELLO}
    async with house.call("POST", "v1/messages", json=body) as response:
        assert await response.content.readline() == b"event: ping\n"
        house.gate.set()
        text = await response.text()
    assert text.rstrip().endswith('data: {"type":"message_stop"}')
    assert "[DONE]" not in text


async def test_closing_a_stream_frees_its_backend(house, client):
    stream = await ask(client, "endless", stream=True)
    async for _ in stream:
        break
    await stream.close()
    await house.until_idle(10.0)
    assert house.manager.get_backend_status_report()["total_cancelled"] == 1


async def test_models(client, house):
    house.manager.set_alias("best", ["echo"])
    names = [model.id async for model in client.models.list()]
    assert {"echo", "org/vectors", "best"} <= set(names)
    model = await client.models.retrieve("echo")
    assert (model.display_name, model.type, model.created_at.tzinfo is not None) == ("echo", "model", True)
    with pytest.raises(anthropic.NotFoundError) as missing:
        await client.models.retrieve("gpt-9")
    assert missing.value.body["error"]["type"] == "not_found_error"
