"""OpenAI's Responses as an upstream is asked, and its answers in the shapes of its public API reference."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.dialects.conftest import read, sse_bytes
from uia_lab.dialects.responses import answers, calls
from uia_lab.dialects.responses.reader import ResponseReader
from uia_lab.dialects.responses.tools import flat_name
from uia_lab.dialects.responses.upstream import OpenAIResponses
from uia_lab.domain import errors
from uia_lab.domain.events import Reasoning, Text, ToolCall
from uia_lab.domain.requests import InferenceRequest, RoutingHints

DIALECT = OpenAIResponses()
USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 2},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
THOUGHT = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "Hm… so"}],
    "encrypted_content": "gAAAA",
}
SAID = {
    "id": "msg_1",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Grüße", "annotations": []}],
}
CALLED = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_1",
    "name": "look",
    "arguments": '{"a": 1}',
}
PATCHED = {
    "id": "ctc_1",
    "type": "custom_tool_call",
    "status": "completed",
    "call_id": "call_2",
    "name": "apply_patch",
    "input": "*** Begin",
}
NOTED = CALLED | {"id": "fc_2", "call_id": "call_3", "name": "add", "namespace": "notes", "arguments": ""}
SEARCHED = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
OUTPUT = [THOUGHT, SEARCHED, SAID, CALLED, PATCHED, NOTED]
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": OUTPUT, "usage": USAGE}
BEGUN = RESPONSE | {"status": "in_progress", "output": [], "usage": None}


def step(kind, **fields):
    return {"type": f"response.{kind}", **fields}


STREAM = [
    step("created", response=BEGUN),
    step("in_progress", response=BEGUN),
    step("output_item.added", output_index=0, item=THOUGHT | {"summary": [], "encrypted_content": None}),
    step("reasoning_summary_part.added", output_index=0, summary_index=0, part={"type": "summary_text"}),
    step("reasoning_summary_text.delta", output_index=0, item_id="rs_1", delta="Hm… "),
    step("reasoning_summary_text.delta", output_index=0, item_id="rs_1", delta="so"),
    step("reasoning_summary_text.done", output_index=0, item_id="rs_1", text="Hm… so"),
    step("output_item.done", output_index=0, item=THOUGHT),
    step("output_item.added", output_index=1, item=SEARCHED),
    step("web_search_call.searching", output_index=1, item_id="ws_1"),
    step("output_item.done", output_index=1, item=SEARCHED),
    step("output_item.added", output_index=2, item=SAID | {"content": []}),
    step("content_part.added", output_index=2, content_index=0, part={"type": "output_text", "text": ""}),
    step("output_text.delta", output_index=2, content_index=0, delta="Grü", logprobs=[]),
    step("output_text.delta", output_index=2, content_index=0, delta="ße", logprobs=[]),
    step("output_text.done", output_index=2, content_index=0, text="Grüße"),
    step("output_item.done", output_index=2, item=SAID),
    step("output_item.added", output_index=3, item=CALLED | {"arguments": ""}),
    step("function_call_arguments.delta", output_index=3, item_id="fc_1", delta='{"a":'),
    step("function_call_arguments.delta", output_index=3, item_id="fc_1", delta=" 1}"),
    step("function_call_arguments.done", output_index=3, item_id="fc_1", arguments='{"a": 1}'),
    step("output_item.done", output_index=3, item=CALLED),
    step("output_item.added", output_index=4, item=PATCHED | {"input": ""}),
    step("custom_tool_call_input.delta", output_index=4, item_id="ctc_1", delta="*** Begin"),
    step("output_item.done", output_index=4, item=PATCHED),
    step("output_item.done", output_index=5, item=NOTED),
    step("completed", response=RESPONSE),
]
DELTAS = [
    Reasoning("Hm… "),
    Reasoning("so"),
    Reasoning("", "openai-responses:rs_1|gAAAA"),
    Text("Grü"),
    Text("ße"),
    ToolCall(0, "call_1", "look"),
    ToolCall(0, arguments='{"a":'),
    ToolCall(0, arguments=" 1}"),
    ToolCall(1, "call_2", "apply_patch"),
    ToolCall(1, arguments='{"input":"*** Begin"}'),
    ToolCall(2, "call_3", "notes__add"),
    ToolCall(2, arguments="{}"),
]


def joined(deltas):
    """Deltas with neighbours of a kind as one."""
    found = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + delta.text)
        elif isinstance(delta, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + delta.text, delta.signature)
        elif isinstance(delta, ToolCall) and isinstance(last, ToolCall) and last.index == delta.index:
            found[-1] = ToolCall(last.index, last.id, last.name, last.arguments + delta.arguments)
        else:
            found.append(delta)
    return found


def check_end(end):
    assert (end.result, end.finish_reason) == ("Grüße", "tool_calls")
    usage = end.usage
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (36, 87, False)
    assert (usage.cached_tokens, usage.cache_creation_tokens, usage.reasoning_tokens) == (30, 2, 64)


def test_a_stream_cut_anywhere(cut_everywhere):
    body = sse_bytes(*(event | {"sequence_number": number} for number, event in enumerate(STREAM)))
    events = cut_everywhere(ResponseReader, body)
    assert [event.delta for event in events[:-1]] == DELTAS
    check_end(events[-1])
    assert read(ResponseReader(), body + b"data: [DONE]\n\n") == events


def test_a_response_that_is_not_streamed():
    raw = json.dumps(RESPONSE).encode()
    events = read(ResponseReader(), raw[:9], raw[9:])
    assert joined(event.delta for event in events[:-1]) == joined(DELTAS)
    check_end(events[-1])


def test_a_server_that_sends_whole_items_only():
    done = [event for event in STREAM if event["type"] in ("response.output_item.done", "response.completed")]
    events = read(ResponseReader(), sse_bytes(*done))
    assert joined(event.delta for event in events[:-1]) == joined(DELTAS)


@pytest.mark.parametrize(
    ("reason", "expected"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_incomplete_responses(reason, expected):
    response = RESPONSE | {"status": "incomplete", "incomplete_details": {"reason": reason}, "output": []}
    events = read(ResponseReader(), sse_bytes(step("incomplete", response=response)))
    assert events[-1].finish_reason == expected


def test_a_stream_without_its_end_has_failed():
    body = sse_bytes(*STREAM[:-1])
    for at in range(0, len(body), len(body) // 40):
        with pytest.raises(errors.BackendFailed):
            read(ResponseReader(), body[:at])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("rate_limit_exceeded", errors.RateLimited),
        ("server_is_overloaded", errors.NoBackendAvailable),
        ("context_length_exceeded", errors.ContextTooLong),
        ("invalid_prompt", errors.BadRequest),
        ("server_error", errors.BackendFailed),
    ],
)
def test_errors_in_the_stream_are_typed(code, error):
    told = {"code": code, "message": "Because"}
    failed = step("failed", response=RESPONSE | {"status": "failed", "error": told})
    for last in (failed, {"type": "error", **told, "param": None}, {"type": "error", "error": told}):
        with pytest.raises(error, match="Because"):
            read(ResponseReader(), sse_bytes(*STREAM[:5], last))
    whole = json.dumps(RESPONSE | {"status": "failed", "error": told, "output": []}).encode()
    with pytest.raises(error, match="Because"):
        read(ResponseReader(), whole)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "invalid_value", errors.BadRequest),
        (400, "context_length_exceeded", errors.ContextTooLong),
        (401, "invalid_api_key", errors.Unauthenticated),
        (404, "model_not_found", errors.ModelNotFound),
        (429, "insufficient_quota", errors.NotAllowed),
        (500, None, errors.BackendFailed),
        (503, None, errors.NoBackendAvailable),
    ],
)
def test_errors_by_status(status, code, error):
    told = {
        "error": {
            "message": "Because",
            "type": "x",
            "param": "input",
            "code": code,
        }
    }
    found = DIALECT.error(status, {"retry-after-ms": "1500"}, json.dumps(told).encode())
    assert type(found) is error
    assert status != 503 or found.retry_after == 1.5
    assert found.param == "input"


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
    ]},
    {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
    ]},
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
    {"role": "assistant", "content": [{"type": "text", "text": "One."}]},
    {"role": "user", "content": "So?"},
]  # fmt: skip
LOOK = {"name": "look", "description": "Looks", "parameters": {"type": "object"}}
SCHEMA = {"name": "x", "schema": {"type": "object"}, "strict": True}


def ask(messages=CHAT, **parameters):
    request = InferenceRequest(
        "text-generation", "gpt", messages=messages, parameters=parameters, stream=True
    )
    return DIALECT.outgoing(request)


def test_a_chat_becomes_a_response():
    out = ask(
        tools=[{"type": "function", "function": LOOK}],
        tool_choice={"type": "function", "function": {"name": "look"}},
        parallel_tool_calls=False,
        max_tokens=7,
        temperature=0.5,
        logprobs=True,
        top_logprobs=3,
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": SCHEMA},
    )
    assert (out.path, out.stream) == ("responses", True)
    body = dict(out.body)
    given = body.pop("input")
    assert body == {
        "model": "gpt",
        "stream": True,
        "store": False,
        "max_output_tokens": 7,
        "temperature": 0.5,
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "strict": False, **LOOK}],
        "tool_choice": {"type": "function", "name": "look"},
        "text": {"format": {"type": "json_schema", **SCHEMA}},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 3,
    }
    kinds = [item["type"] for item in given]
    assert kinds == ["message"] * 3 + ["function_call", "function_call_output", "message", "message"]
    text, image, document = given[1]["content"]
    assert text == {"type": "input_text", "text": "What?"}
    assert (image["type"], image["image_url"]) == ("input_image", "data:image/png;base64,aGk=")
    assert (document["type"], document["filename"]) == ("input_file", "a.pdf")
    assert given[5]["content"] == [{"type": "output_text", "text": "One."}]


@pytest.mark.parametrize("name", ["n", "stop", "frequency_penalty", "top_k", "logit_bias"])
def test_what_has_no_form_is_named(name):
    with pytest.raises(errors.Unsupported) as caught:
        ask(**{name: 5})
    assert caught.value.param == name


CALL = {
    "model": "alias",
    "stream": True,
    "store": False,
    "uia": {"priority": 1},
    "instructions": "S",
    "include": ["reasoning.encrypted_content"],
    "tools": [
        {"type": "function", **LOOK},
        {"type": "custom", "name": "apply_patch", "format": {"type": "text"}},
        {"type": "web_search"},
        {"type": "namespace", "name": "notes", "tools": [{"type": "function", "name": "add"}]},
    ],
    "input": [
        {"role": "user", "content": "Hi"},
        THOUGHT | {"id": "rs_ours", "encrypted_content": "rs_1|gAAAA"},
        {"type": "reasoning", "id": "rs_other", "summary": [{"type": "summary_text", "text": "unsealed"}]},
        CALLED,
        PATCHED,
        {"type": "function_call_output", "call_id": "call_1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "two"},
    ],
}


def request_of(body):
    return calls.parse(json.dumps(body).encode()).request("req-1", "me", RoutingHints())


def test_what_came_in_this_dialect_goes_out_as_it_came():
    body = DIALECT.outgoing(replace(request_of(CALL), model="gpt")).body
    assert (body["model"], body["store"], "uia" in body) == ("gpt", False, False)
    assert body["include"] == CALL["include"]
    assert [tool["type"] for tool in body["tools"]] == ["function", "custom", "namespace"]
    assert body["input"][1] == THOUGHT
    assert [item.get("type") for item in body["input"]].count("reasoning") == 1
    assert all("id" not in item for item in body["input"] if item.get("type") != "reasoning")


def test_what_the_dialect_shares_survives_the_domain():
    body = DIALECT.outgoing(replace(request_of(CALL), wire=None)).body
    assert [tool["name"] for tool in body["tools"]] == ["look", "apply_patch", "notes__add"]
    system, user, look, patch, one, two = body["input"]
    assert (system["content"], user["content"]) == ("S", "Hi")
    assert (look["call_id"], look["name"], look["arguments"]) == ("call_1", "look", '{"a": 1}')
    assert json.loads(patch["arguments"]) == {"input": "*** Begin"}
    assert (one["output"], two["output"]) == ("one", "two")


def test_an_answer_goes_through_both_directions_unchanged():
    """A response read from an upstream and rendered by the door is the response."""
    call = calls.parse(json.dumps(CALL).encode())
    events = read(ResponseReader(), sse_bytes(*STREAM))
    stream = answers.Stream(call, "req-1", "b")
    rendered = b"".join(stream.render(event) for event in events)
    again = read(ResponseReader(), rendered)
    sealed = Reasoning("Hm… so", "openai-responses:rs_1|gAAAA")
    deltas = joined(event.delta for event in again[:-1])
    # The seal is in the door's item, under the door's own id.
    assert deltas[0].signature.endswith("|rs_1|gAAAA")
    assert [sealed, *deltas[1:]] == joined(event.delta for event in events[:-1])
    assert again[-1] == events[-1]
    names = [(item["type"], item["name"], item.get("namespace")) for item in stream.response["output"][2:]]
    assert names == [
        ("function_call", "look", None),
        ("custom_tool_call", "apply_patch", None),
        ("function_call", "add", "notes"),
    ]


def test_long_names_stay_apart_and_within_the_limit():
    names = {flat_name(f"tool_{number}", "n" * 60) for number in range(50)}
    assert len(names) == 50
    assert all(len(name) <= 64 for name in names)
    assert flat_name("add", "mcp__notes__") == "mcp__notes__add"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_an_upstream_gone_mad_is_a_typed_error(data):
    event = json.loads(json.dumps(data.draw(st.sampled_from(STREAM))))
    inner = data.draw(
        st.sampled_from([event, *(value for value in event.values() if isinstance(value, dict))])
    )
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(json_values)
    with contextlib.suppress(errors.InferenceError):
        read(ResponseReader(), sse_bytes(*STREAM[:3], {"type": "x"} | event))
    for raw in (event, RESPONSE | {"output": data.draw(json_values)}, RESPONSE | {"output": [inner]}):
        with contextlib.suppress(errors.InferenceError):
            read(ResponseReader(), json.dumps(raw).encode())


FIELDS = (
    "model input instructions tools tool_choice reasoning text max_output_tokens stream metadata include "
    "top_logprobs parallel_tool_calls store uia user"
)
ITEM = "type role content call_id name arguments input output summary id text namespace"
items = st.dictionaries(
    st.sampled_from(ITEM.split()),
    json_values
    | st.sampled_from([item["type"] for item in OUTPUT])
    | st.sampled_from(["message", "user", "assistant", "function_call_output", "input_text"]),
    max_size=6,
)
bodies = st.dictionaries(
    st.sampled_from(FIELDS.split()),
    json_values
    | st.sampled_from([CALL["input"], CALL["tools"], "hi", 5, {"type": "function", "name": "look"}]),
    max_size=8,
)


@given(bodies | json_values | st.lists(items, max_size=4).map(lambda it: {"input": it}))
@settings(max_examples=500, deadline=None)
def test_any_json_is_a_request_that_can_be_sent_on_or_a_bad_request(value):
    try:
        request = request_of(value)
    except (errors.BadRequest, errors.Unsupported):
        return
    DIALECT.outgoing(request)
    with contextlib.suppress(errors.BadRequest, errors.Unsupported):
        DIALECT.outgoing(replace(request, wire=None))
