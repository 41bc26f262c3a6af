import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uia_lab.dialects import openai_chat, openai_completions, openai_embeddings
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.hints import passed_through, routing_hints
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.openai_errors import envelope
from uia_lab.domain import errors
from uia_lab.domain.backends import BackendType
from uia_lab.domain.events import Chunk, Finished, Reasoning, Result, Started, Text, ToolCall, Usage
from uia_lab.domain.requests import RoutingHints

PARSERS = {
    "chat": openai_chat.parse,
    "completions": openai_completions.parse,
    "embeddings": openai_embeddings.parse,
}
HELLO = [{"role": "user", "content": "hi"}]


def body(**fields):
    return json.dumps(fields).encode()


def events_of(stream, *events):
    text = b"".join(stream.render(event) for event in events).decode()
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "model messages prompt input n stop seed stream stream_options temperature top_p tools logprobs "
    "top_logprobs echo best_of max_tokens max_completion_tokens uia response_format dimensions "
    "encoding_format modalities logit_bias suffix functions audio"
)
names = st.sampled_from(FIELDS.split())
bodies = st.dictionaries(names, json_values | st.just(HELLO) | st.just("text"), max_size=8) | json_values


@given(bodies)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_request_or_a_bad_request(value):
    for parse in PARSERS.values():
        try:
            call = parse(json.dumps(value).encode())
            call.request("req-1", "me", routing_hints({}, call.hints))
        except errors.BadRequest as error:
            encode(envelope(error.http_status, error.message, error.code, error.param))


@given(st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_request_or_a_bad_request(raw):
    for parse in PARSERS.values():
        with pytest.raises(errors.BadRequest):
            parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x", "a": ' + b"[" * 90 + b"]" * 90 + b"}]}",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": NaN}',
        b'{"messages": 1e999}',
        b'{"n": ' + b"9" * 5000 + b', "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": "a", "messages": 3}',
    ],
)
def test_hostile_bodies_are_bad_requests(raw):
    with pytest.raises(errors.BadRequest):
        openai_chat.parse(raw)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [5]}]}, "messages[0].tool_calls"),
        ({"messages": HELLO, "model": 3}, "model"),
        ({"messages": HELLO, "n": True}, "n"),
        ({"messages": HELLO, "n": 0}, "n"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "temperature": 2.5}, "temperature"),
        ({"messages": HELLO, "stop": [1]}, "stop"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        (
            {"messages": HELLO, "stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": HELLO, "tools": {}}, "tools"),
        ({"messages": HELLO, "max_completion_tokens": 1.5}, "max_completion_tokens"),
    ],
)  # fmt: skip
def test_the_bad_field_is_named(fields, param):
    with pytest.raises(errors.BadRequest) as caught:
        openai_chat.parse(body(**fields))
    assert caught.value.param == param


def test_chat_parameters_keep_their_names_and_strangers_are_ignored():
    kept = {
        "n": 2,
        "seed": 7,
        "stop": "x",
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
    }
    dropped = {"response_format": {"type": "text"}, "temperature": None, "whatever": {"a": 1}}
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    call = openai_chat.parse(
        body(model="m", messages=HELLO, uia={"priority": 3}, **kept, **dropped, **streaming)
    )
    assert dict(call.parameters) == kept
    assert (call.stream, call.include_usage, call.choices) == (True, True, 2)
    assert call.hints == {"priority": 3}


def test_a_whole_chat_answer():
    call = openai_chat.parse(body(model="m", messages=HELLO, n=2))
    answer = Answer(call.choices)
    for event in (
        Started("b"),
        Chunk(0, Text("He"), logprobs=[{"token": "He", "logprob": -0.1}]),
        Chunk(1, Reasoning("hm"), choice=1),
        Chunk(2, ToolCall(0, "t1", "look", '{"a"'), choice=1),
        Chunk(3, Text("llo")),
        Chunk(4, ToolCall(0, arguments=":1}"), choice=1),
        Finished("Hello", Usage(3, 4), "stop", (), ("stop", "tool_calls")),
    ):
        answer.add(event)
    whole = openai_chat.whole(call, "req-abc", answer)
    first, second = whole["choices"]
    assert (whole["id"], whole["model"], whole["object"]) == ("chatcmpl-abc", "m", "chat.completion")
    assert first["message"] == {"role": "assistant", "content": "Hello"}
    assert first["logprobs"]["content"] == [{"token": "He", "logprob": -0.1}]
    assert second["finish_reason"] == "tool_calls"
    assert second["message"]["content"] is None
    assert second["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a":1}'}
    assert second["message"]["reasoning_content"] == "hm"
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_chat_stream_has_one_id_the_role_first_and_usage_last():
    call = openai_chat.parse(
        body(model="m", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    stream = openai_chat.Stream(call, "req-abc", "b")
    events = events_of(
        stream,
        Started("b"),
        Chunk(0, Text("a\n")),
        Chunk(1, Result({"k": 1})),
        Finished("x", Usage(1, 2), "length"),
    )
    assert {(item["id"], item["created"], item["model"]) for item in events} == {
        ("chatcmpl-abc", events[0]["created"], "m")
    }
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "a\n"}
    assert events[1]["choices"][0]["delta"] == {"content": '{"k":1}'}
    assert events[2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert events[3]["choices"] == []
    assert events[3]["usage"]["total_tokens"] == 3


def test_the_text_of_an_end_without_chunks_is_not_lost():
    call = openai_chat.parse(body(messages=HELLO, stream=True))
    events = events_of(openai_chat.Stream(call, "req-a", "b"), Finished("whole"))
    assert events[0]["choices"][0]["delta"]["content"] == "whole"
    assert events[0]["model"] == "b"


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("a", 2), (["a", "b"], 4), ([1, 2], 2), ([[1], [2, 3]], 4)],
)
def test_prompts_of_every_shape(prompt, choices):
    call = openai_completions.parse(body(prompt=prompt, n=2, echo=True))
    assert (call.inputs, call.choices) == (prompt, choices)
    assert call.parameters["echo"] is True


@pytest.mark.parametrize("prompt", [None, [], [[]], ["a", 1], [1, "a"], [-1], [True], {}, 3])
def test_prompts_that_are_none(prompt):
    with pytest.raises(errors.BadRequest) as caught:
        openai_completions.parse(body(prompt=prompt))
    assert caught.value.param == "prompt"


def test_completions_have_their_own_logprobs_with_offsets():
    call = openai_completions.parse(body(prompt="p", logprobs=1, stream=True))
    top = [{"token": "ab", "logprob": -1.0}]
    stream = openai_completions.Stream(call, "req-a", "b")
    events = events_of(
        stream,
        Chunk(0, Text("ab"), logprobs=[{"token": "ab", "logprob": -1.0, "top_logprobs": top}]),
        Chunk(1, Text("c"), logprobs={"content": [{"token": "c", "logprob": -2.0}]}),
        Finished("abc"),
    )
    assert events[0]["choices"][0]["logprobs"] == {
        "tokens": ["ab"], "token_logprobs": [-1.0], "top_logprobs": [{"ab": -1.0}], "text_offset": [0],
    }  # fmt: skip
    assert events[1]["choices"][0]["logprobs"]["text_offset"] == [2]


@pytest.mark.parametrize("result", [[[1.0, 2.0], [3.0, 4.0]], np.array([[1, 2], [3, 4]])])
def test_embeddings_as_numbers_and_as_base64(result):
    for encoding in ("float", "base64"):
        call = openai_embeddings.parse(body(input=["a", "b"], encoding_format=encoding))
        answer = Answer(2)
        answer.add(Started("b"))
        answer.add(Finished(result, Usage(5)))
        whole = openai_embeddings.whole(call, answer)
        got = [item["embedding"] for item in whole["data"]]
        if encoding == "base64":
            got = [np.frombuffer(base64.b64decode(item), "<f4").tolist() for item in got]
        assert got == [[1.0, 2.0], [3.0, 4.0]]
        assert whole["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    "result", [None, "text", [[1.0]], [[1.0], [2.0, 3.0]], [[float("nan")], [1.0]], [[], []]]
)
def test_embeddings_that_are_none_are_the_backends_fault(result):
    answer = Answer(2)
    answer.add(Finished(result))
    with pytest.raises(errors.BackendFailed):
        openai_embeddings.whole(openai_embeddings.parse(body(input=["a", "b"])), answer)


def test_hints_from_headers_and_body_and_bad_ones_by_name():
    headers = {
        "x-uia-exclude": "a, b,",
        "x-uia-prefer": "gpu, api,gpu",
        "x-uia-priority": "3",
        "x-uia-timeout": "2.5",
    }
    assert routing_hints(headers, {"backend": "b", "session": "s", "priority": 4}) == RoutingHints(
        preferred_types=(BackendType.GPU, BackendType.API),
        backend_id="b",
        session_id="s",
        priority=4,
        deadline_s=2.5,
        excluded_backends=frozenset({"a", "b"}),
    )
    for given_headers, given_body, param in (
        ({"x-uia-priority": "high"}, {}, "x-uia-priority"),
        ({"x-uia-timeout": "nan"}, {}, "x-uia-timeout"),
        ({"x-uia-timeout": "0"}, {}, "x-uia-timeout"),
        ({"x-uia-prefer": "tpu"}, {}, "x-uia-prefer"),
        ({}, {"prefer": 3}, "uia.prefer"),
        ({}, {"exclude": [3]}, "uia.exclude"),
        ({"x-uia-exclude": ",".join(["x"] * 65)}, {}, "x-uia-exclude"),
        ({}, {"prio": 3}, "uia.prio"),
        ({}, {"timeout": -1}, "uia.timeout"),
    ):
        with pytest.raises(errors.BadRequest) as caught:
            routing_hints(given_headers, given_body)
        assert caught.value.param == param
    assert passed_through({"x-uia-via": "a, b"}) == ("a", "b")
    with pytest.raises(errors.BadRequest):
        passed_through({"x-uia-via": ",".join("abcdefghijklmnopqrst")})
    for odd in ("a\r\nX-Injected: 1", "a b", "ä", "x" * 129, "\ud800"):
        with pytest.raises(errors.BadRequest, match="visible ASCII"):
            passed_through({"x-uia-via": odd})


def test_encode_takes_whatever_a_backend_gives():
    assert json.loads(encode({"a": np.float32(1), "b": {2}, "c": "\ud800", 3: 2**70})) == {
        "a": 1.0, "b": [2], "c": "\ud800", "3": 2**70,
    }  # fmt: skip
    assert json.loads(encode(np.ones(2))) == [1.0, 1.0]
