"""Anthropic's Messages as an upstream is asked, and its answers in the shapes of its public API reference."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.dialects.conftest import read, sse_bytes
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.anthropic import answers, calls
from uia_lab.dialects.anthropic.reader import MessageReader
from uia_lab.dialects.anthropic.upstream import AnthropicMessages
from uia_lab.dialects.tool_calls import InTurn
from uia_lab.domain import errors
from uia_lab.domain.events import Chunk, Finished, Reasoning, Text, ToolCall
from uia_lab.domain.requests import InferenceRequest, RoutingHints

DIALECT = AnthropicMessages()
START = {
    "type": "message_start",
    "message": {
        "id": "msg_1nZdL29xx5MUA1yADyHTEsnR8uuvGzszyY",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude-opus-4-8",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 5,
            "cache_read_input_tokens": 100,
            "output_tokens": 1,
        },
    },
}


def begin(index, kind, **fields):
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


def delta(index, kind, **fields):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def stop(index):
    return {"type": "content_block_stop", "index": index}


STREAM = (
    START,
    {"type": "ping"},
    begin(0, "thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="Hm… "),
    delta(0, "signature_delta", signature="EqQB"),
    stop(0),
    begin(1, "redacted_thinking", data="EmwK"),
    stop(1),
    begin(2, "text", text=""),
    delta(2, "text_delta", text="Grüße"),
    stop(2),
    begin(3, "tool_use", id="toolu_1", name="now", input={}),
    stop(3),
    begin(4, "tool_use", id="toolu_2", name="look", input={}),
    delta(4, "input_json_delta", partial_json=""),
    delta(4, "input_json_delta", partial_json='{"a":'),
    delta(4, "input_json_delta", partial_json=" 1}"),
    stop(4),
    begin(5, "server_tool_use", id="s", name="web_search", input={}),
    delta(5, "input_json_delta", partial_json='{"q": 1}'),
    stop(5),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 89},
    },
    {"type": "message_stop"},
)


def test_a_stream_cut_anywhere(cut_everywhere):
    events = cut_everywhere(MessageReader, sse_bytes(*STREAM))
    assert [event.delta for event in events[:-1]] == [
        Reasoning("Hm… "),
        Reasoning("", "anthropic:EqQB"),
        Reasoning("", "anthropic-redacted:EmwK"),
        Text("Grüße"),
        ToolCall(0, "toolu_1", "now"),
        ToolCall(0, arguments="{}"),
        ToolCall(1, "toolu_2", "look"),
        ToolCall(1, arguments='{"a":'),
        ToolCall(1, arguments=" 1}"),
    ]
    end = events[-1]
    assert (end.result, end.finish_reason) == ("Grüße", "tool_calls")
    assert (end.usage.input_tokens, end.usage.output_tokens, end.usage.estimated) == (130, 89, False)
    assert (end.usage.cached_tokens, end.usage.cache_creation_tokens) == (100, 5)


def test_a_message_that_is_not_streamed():
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm", "signature": "EqQB"},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1}},
        ],
        "stop_reason": "stop_sequence",
        "stop_sequence": "END",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    raw = json.dumps(message).encode()
    events = read(MessageReader(), raw[:9], raw[9:])
    assert [event.delta for event in events[:-1]] == [
        Reasoning("Hm", "anthropic:EqQB"),
        Text("Hi"),
        ToolCall(0, "toolu_1", "look"),
        ToolCall(0, arguments='{"a":1}'),
    ]
    assert (events[-1].finish_reason, events[-1].stop_sequence) == ("stop", "END")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_stop_reasons(reason, expected):
    end = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 0}}
    events = read(MessageReader(), sse_bytes(START, end, {"type": "message_stop"}))
    assert events[-1].finish_reason == expected


def test_a_stream_without_its_end_has_failed():
    body = sse_bytes(*STREAM)
    ends = [at for at in range(len(body)) if b"message_stop" not in body[:at].rpartition(b"data: ")[2]]
    for at in ends[:: len(ends) // 40]:
        with pytest.raises(errors.BackendFailed):
            read(MessageReader(), body[:at])


@pytest.mark.parametrize(
    ("kind", "error", "retryable"),
    [
        ("overloaded_error", errors.NoBackendAvailable, True),
        ("rate_limit_error", errors.RateLimited, True),
        ("api_error", errors.BackendFailed, True),
        ("invalid_request_error", errors.BadRequest, False),
    ],
)
def test_an_error_in_the_stream_is_typed(kind, error, retryable):
    body = sse_bytes(START, {"type": "error", "error": {"type": kind, "message": "Overloaded"}})
    with pytest.raises(error, match="Overloaded") as caught:
        read(MessageReader(), body)
    assert caught.value.retryable is retryable


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_an_upstream_gone_mad_is_a_typed_error(data):
    event = dict(data.draw(st.sampled_from(STREAM)))
    event[data.draw(st.sampled_from(sorted(event)))] = data.draw(json_values)
    with contextlib.suppress(errors.InferenceError):
        read(MessageReader(), sse_bytes(START, {"type": "x"} | event))
    for raw in (json.dumps(event), json.dumps({"content": data.draw(json_values), "type": "message"})):
        with contextlib.suppress(errors.InferenceError):
            read(MessageReader(), raw.encode())


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", errors.BadRequest),
        (401, "authentication_error", errors.Unauthenticated),
        (403, "permission_error", errors.NotAllowed),
        (404, "not_found_error", errors.ModelNotFound),
        (413, "request_too_large", errors.BadRequest),
        (429, "rate_limit_error", errors.RateLimited),
        (500, "api_error", errors.BackendFailed),
        (529, "overloaded_error", errors.NoBackendAvailable),
    ],
)
def test_errors_by_status(status, kind, error):
    body = {"type": "error", "error": {"type": kind, "message": "model: Because"}, "request_id": "req_1"}
    found = DIALECT.error(status, {"retry-after": "3"}, json.dumps(body).encode())
    assert type(found) is error
    assert status not in (429, 529) or found.retry_after == 3.0
    assert "model: Because" in found.message


def test_a_prompt_that_is_too_long_is_called_so():
    told = {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"},
    }
    assert isinstance(DIALECT.error(400, {}, json.dumps(told).encode()), errors.ContextTooLong)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
    ]},
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "look", "arguments": ""}},
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
    {"role": "tool", "tool_call_id": "c2", "content": "two"},
    {"role": "user", "content": "So?"},
]  # fmt: skip
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks", "parameters": {"type": "object"}},
}


def ask(messages=CHAT, stream=True, **parameters):
    request = InferenceRequest(
        "text-generation", "claude", messages=messages, parameters=parameters, stream=stream
    )
    return DIALECT.outgoing(request)


def test_a_chat_becomes_messages():
    out = ask(
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "look"}},
        parallel_tool_calls=False,
        max_completion_tokens=7,
        stop="END",
        temperature=0.5,
        top_k=3,
        user="u",
        seed=1,
        reasoning_effort="minimal",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    )
    assert (out.path, out.stream, out.headers) == ("messages", True, {"anthropic-version": "2023-06-01"})
    body = dict(out.body)
    user, assistant, results = body.pop("messages")
    assert body == {
        "model": "claude",
        "stream": True,
        "max_tokens": 7,
        "system": "Be brief.",
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 3,
        "metadata": {"user_id": "u"},
        "tools": [{"name": "look", "description": "Looks", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "output_config": {
            "format": {"type": "json_schema", "schema": {"type": "object"}},
            "effort": "low",
        },
    }
    text, image, linked, document = user["content"]
    assert text == {"type": "text", "text": "What?"}
    assert image["source"] == {"type": "base64", "media_type": "image/png", "data": "aGk="}
    assert linked["source"] == {"type": "url", "url": "https://example.org/a.png"}
    assert (document["type"], document["source"]["media_type"]) == ("document", "application/pdf")
    assert [block["input"] for block in assistant["content"]] == [{"a": 1}, {}]
    assert [block["type"] for block in results["content"]] == ["tool_result", "tool_result", "text"]
    assert results["content"][0]["tool_use_id"] == "c1"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": 1.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
    ],
)
def test_what_has_no_form_is_named(parameters, param):
    with pytest.raises(errors.Unsupported) as caught:
        ask(**parameters)
    assert caught.value.param == param


def test_harmless_values_pass():
    body = ask(n=1, frequency_penalty=0, top_k=-1, logprobs=False, top_logprobs=None).body
    assert set(body) == {"model", "stream", "messages", "max_tokens", "system"}


CALL = {
    "model": "alias",
    "max_tokens": 9,
    "stream": True,
    "uia": {"priority": 1},
    "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tools": [{"name": "look", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "unsealed", "signature": ""},
            {"type": "thinking", "thinking": "sealed", "signature": "EqQB"},
            {"type": "redacted_thinking", "data": "EmwK"},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "is_error": True}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "unsealed", "signature": ""}]},
    ],
}  # fmt: skip


def request_of(body):
    return calls.parse(json.dumps(body).encode()).request("req-1", "me", RoutingHints())


def test_what_came_in_this_dialect_goes_out_as_it_came():
    call = calls.parse(json.dumps(CALL).encode(), "context-1,tools-2")
    request = call.request("req-1", "me", RoutingHints())
    out = DIALECT.outgoing(replace(request, model="claude"))
    assert out.headers["anthropic-beta"] == "context-1,tools-2"
    body = out.body
    assert (body["model"], "uia" in body) == ("claude", False)
    for name in ("system", "thinking", "tools", "max_tokens"):
        assert body[name] == CALL[name]
    assert [block.get("signature") for block in body["messages"][1]["content"]] == ["EqQB", None, None]
    assert len(body["messages"]) == 3


def test_what_the_dialect_shares_survives_the_domain():
    request = request_of(CALL | {"messages": CALL["messages"][:3]})
    body = DIALECT.outgoing(replace(request, wire=None)).body
    assert body["system"] == "S"
    assert body["tools"] == [{"name": "look", "input_schema": {"type": "object"}}]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [CALL["messages"][1]["content"][3]]
    assert body["messages"][2]["content"][0]["tool_use_id"] == "c1"


def test_an_answer_goes_through_both_directions_unchanged():
    """A message read from an upstream and rendered by the door is the message."""
    call = calls.parse(json.dumps(CALL).encode())
    events = read(MessageReader(), sse_bytes(*STREAM))
    stream = answers.Stream(call, "req-1", "b")
    rendered = b"".join(stream.render(event) for event in events)
    again = read(MessageReader(), rendered)
    assert [event.delta for event in again[:-1] if event.delta != ToolCall(0, arguments="{}")] == [
        event.delta for event in events[:-1] if event.delta != ToolCall(0, arguments="{}")
    ]
    assert again[-1] == events[-1]


FIELDS = (
    "model max_tokens messages system tools tool_choice thinking stop_sequences metadata temperature top_k "
    "output_config stream uia mcp_servers"
)
BLOCK = "type text source thinking signature id name input tool_use_id content data"
json_bodies = st.dictionaries(
    st.sampled_from(FIELDS.split()),
    json_values
    | st.sampled_from([CALL["messages"], CALL["tools"], CALL["system"], 5, True, {"type": "tool"}]),
    max_size=8,
)
blocks = st.dictionaries(
    st.sampled_from(BLOCK.split()),
    json_values | st.sampled_from(["text", "image", "document", "thinking", "tool_use", "tool_result"]),
    max_size=5,
)
turns_ = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.lists(blocks, max_size=3)}
    ),
    max_size=3,
)


@given(json_bodies | json_values | turns_.map(lambda it: {"max_tokens": 5, "messages": it}))
@settings(max_examples=500, deadline=None)
def test_any_json_is_a_request_that_can_be_sent_on_or_a_bad_request(value):
    try:
        request = request_of(value)
    except (errors.BadRequest, errors.Unsupported):
        return
    DIALECT.outgoing(request)
    with contextlib.suppress(errors.BadRequest, errors.Unsupported):
        DIALECT.outgoing(replace(request, wire=None))


def test_a_tool_call_that_was_cut_off_is_kept():
    call = calls.parse(json.dumps(CALL).encode())
    answer = Answer()
    for event in (Chunk(0, ToolCall(0, "c", "look", '{"a": ')), Finished("", finish_reason="length")):
        answer.add(event)
    message = answers.whole(call, "req-1", answer)
    assert message["content"][0]["input"] == {"INVALID_JSON": '{"a": '}
    assert message["stop_reason"] == "max_tokens"


def test_a_backend_that_goes_back_to_an_ended_call_has_failed():
    stream = answers.Stream(calls.parse(json.dumps(CALL).encode()), "req-1", "b")
    stream.render(Chunk(0, ToolCall(0, "c0", "look", "{")))
    stream.render(Chunk(1, Text("so ")))
    assert stream.render(Chunk(2, ToolCall(0, arguments=" "))) == b""
    with pytest.raises(errors.BackendFailed, match="tool call"):
        stream.render(Chunk(3, ToolCall(0, arguments="}")))


def test_a_later_call_waits_only_until_the_one_before_it_is_whole():
    turn = InTurn()
    pieces = [
        ToolCall(0, "c0", "look", '{"a": "}'),
        ToolCall(1, "c1", "look", '{"b"'),
        ToolCall(0, arguments='\\"}"'),
        ToolCall(2, "c2", "look"),
        ToolCall(1, arguments=": {}}"),
        ToolCall(0, arguments="}"),
        ToolCall(2, arguments="{}"),
    ]
    shown = [[(it.index, it.id, it.arguments) for it in turn.take(piece)] for piece in pieces]
    assert shown == [
        [(0, "c0", '{"a": "}')],
        [],
        [(0, None, '\\"}"')],
        [],
        [],
        [(0, None, "}"), (1, "c1", '{"b": {}}'), (2, "c2", "")],
        [(2, None, "{}")],
    ]
    assert list(turn.rest()) == []
    assert [it.index for it in (*turn.take(ToolCall(3, "c3")), *turn.take(ToolCall(4, "c4")))] == [3]
    assert [(it.index, it.id) for it in turn.rest()] == [(4, "c4")]
