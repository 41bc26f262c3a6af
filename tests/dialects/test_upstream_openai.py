"""The upstream direction of OpenAI's dialect, byte by byte and in shapes of several providers."""

import base64
import json

import numpy as np
import pytest

from uia_lab.dialects.registry import UPSTREAM_DIALECTS, upstream_dialect
from uia_lab.dialects.sse import MAX_EVENT, Parser
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    ContextTooLong,
    NoBackendAvailable,
    Unsupported,
)
from uia_lab.domain.events import Chunk, Finished, Reasoning, Text, ToolCall, Usage
from uia_lab.domain.requests import InferenceRequest

OPENAI = upstream_dialect("openai")
CLOUD = upstream_dialect("openai-chat")


def chat(**parameters):
    messages = [{"role": "user", "content": "hi"}]
    return InferenceRequest("chat", "m", messages=messages, parameters=parameters, stream=True)


def prompt(inputs="Once", **parameters):
    return InferenceRequest("generation", "m", inputs=inputs, parameters=parameters, stream=True)


def frames(*values, done=True):
    data = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    return data + (b"data: [DONE]\n\n" if done else b"")


def choice(delta=None, reason=None, index=0, **more):
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": reason, **more}]}


def read(request, data, size=None, dialect=OPENAI):
    """Events of a body that comes in pieces of so many bytes."""
    reader = dialect.reader(request, dialect.outgoing(request))
    pieces = [data] if size is None else [data[at : at + size] for at in range(0, len(data), size)]
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.end()]


def test_a_chat_goes_out_as_a_stream_with_its_usage():
    out = OPENAI.outgoing(chat(temperature=0, tools=[{"type": "function"}], n=2))
    assert out.path == "chat/completions"
    assert out.stream
    assert out.body["messages"] == [{"role": "user", "content": "hi"}]
    assert out.body["model"] == "m"
    assert (out.body["temperature"], out.body["n"], out.body["stream"]) == (0, 2, True)
    assert out.body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("size", [None, 1, 7])
def test_text_reasoning_logprobs_and_usage(size):
    logprobs = {"content": [{"token": "Hel", "logprob": -0.1, "top_logprobs": []}], "refusal": None}
    data = b": keep-alive\r\n\r\n" + frames(
        choice({"role": "assistant", "content": ""}),
        choice({"reasoning_content": "hm"}),
        choice({"content": "Hel"}, logprobs=logprobs),
        choice({"content": "lo ü"}),
        choice(reason="stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}},
    )
    *chunks, end = read(chat(), data, size)
    assert [chunk.delta for chunk in chunks] == [Reasoning("hm"), Text("Hel"), Text("lo ü")]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert chunks[1].logprobs == logprobs
    assert end == Finished("Hello ü", Usage(3, 5), "stop")


def test_tool_calls_in_pieces_and_unnumbered():
    call = {"index": 0, "id": "c1", "function": {"name": "now", "arguments": '{"zone"'}}
    data = frames(
        choice({"tool_calls": [call]}),
        choice({"tool_calls": [{"index": 0, "function": {"arguments": ': "UTC"}'}}]}),
        choice(reason="tool_calls"),
    )
    *chunks, end = read(chat(), data)
    assert [chunk.delta for chunk in chunks] == [
        ToolCall(0, "c1", "now", '{"zone"'),
        ToolCall(0, None, None, ': "UTC"}'),
    ]
    assert end.finish_reason == "tool_calls"
    whole = [{"id": f"c{n}", "function": {"name": f"f{n}", "arguments": {"n": n}}} for n in range(2)]
    *chunks, _ = read(
        chat(), frames(*(choice({"tool_calls": [item]}) for item in whole), choice(reason="stop"))
    )
    assert [chunk.delta for chunk in chunks] == [
        ToolCall(0, "c0", "f0", '{"n":0}'),
        ToolCall(1, "c1", "f1", '{"n":1}'),
    ]


def test_several_choices_each_with_its_reason():
    data = frames(
        choice({"content": "a"}, index=1),
        choice({"content": "b"}),
        choice(reason="length"),
        choice(reason="stop", index=1),
    )
    *chunks, end = read(chat(n=2), data)
    assert [(chunk.choice, chunk.delta.text) for chunk in chunks] == [(1, "a"), (0, "b")]
    assert (end.result, end.finish_reason, end.finish_reasons) == ("b", "length", ("length", "stop"))
    assert end.usage.estimated
    with pytest.raises(BackendFailed, match="without a finish reason"):
        read(chat(n=2), frames(choice({"content": "a"}, index=1), choice({"content": "b"}, "stop")))


def test_a_stream_without_its_mark_is_whole_once_each_choice_has_told_its_reason():
    """``transformers serve`` ends a stream with the finish reason and sends no ``[DONE]``."""
    data = frames(choice({"content": "a"}), choice(reason="stop"), done=False)
    assert read(chat(), data, 5)[-1].result == "a"
    with pytest.raises(BackendFailed, match="without its end"):
        read(chat(n=2), data)
    text = frames({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}, done=False)
    assert read(prompt(), text)[-1].result == "a"
    with pytest.raises(BackendFailed, match="without its end"):
        read(prompt(["a", "b"]), text)


def test_parts_of_a_content_that_is_a_list():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "ok"},
    ]
    *chunks, _ = read(chat(), frames(choice({"content": parts}), choice(reason="model_length")))
    assert [chunk.delta for chunk in chunks] == [Reasoning("hm"), Text("ok")]


def test_an_upstream_that_does_not_stream_is_understood_all_the_same():
    message = {"role": "assistant", "content": "Hi", "reasoning": "hm", "tool_calls": None}
    body = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "eos_token"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    data = b" \n" + json.dumps(body, indent=2).encode()
    *chunks, end = read(chat(), data, 5)
    assert [chunk.delta for chunk in chunks] == [Reasoning("hm"), Text("Hi")]
    assert end == Finished("Hi", Usage(1, 2), "stop")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frames(choice({"content": "a"}), done=False), "ended after 1 chunks without its end"),
        (frames(choice({"content": "a"})), "without a finish reason"),
        (b'data: {"choices": [{"in\n\n', "malformed"),
        (b'data: {"choices": 7}\n\n', "malformed"),
        (b"<html>oops</html>", "without its end"),
        (b'{"choices": []}', "without a finish reason"),
        (b'{"choices"', "malformed"),
        (b"", "before anything"),
    ],
)
def test_what_is_no_whole_answer_has_failed(data, message):
    with pytest.raises(BackendFailed, match=message):
        read(chat(), data)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        ({"error": {"message": "out of memory", "code": 500, "type": "server_error"}}, BackendFailed),
        ({"error": {"message": "no", "code": 503, "type": "unavailable_error"}}, NoBackendAvailable),
        (
            {"error": {"message": "too much", "type": "exceed_context_size_error", "code": 400}},
            ContextTooLong,
        ),
        ({"error": {"message": "overloaded", "type": "overloaded_error"}}, NoBackendAvailable),
        ({"error": "something broke"}, BackendFailed),
        ({"object": "error", "message": "bad", "code": 400}, BadRequest),
    ],
)
def test_an_error_inside_a_good_answer(frame, kind):
    with pytest.raises(kind, match="inside its answer") as caught:
        read(chat(), frames(choice({"content": "a"}), frame))
    assert type(caught.value) is kind
    named = b"event: error\ndata: " + json.dumps(frame).encode() + b"\n\n"
    with pytest.raises(kind):
        read(chat(), named)


def test_a_prompt_where_there_are_completions_and_where_there_are_none():
    out = OPENAI.outgoing(prompt(["a", "b"], echo=True, logprobs=2))
    assert (out.path, out.body["prompt"], out.body["logprobs"]) == ("completions", ["a", "b"], 2)
    out = CLOUD.outgoing(prompt("Once", logprobs=2, max_tokens=5))
    assert out.path == "chat/completions"
    assert out.body["messages"] == [{"role": "user", "content": "Once"}]
    assert (out.body["logprobs"], out.body["top_logprobs"]) == (True, 2)
    for request, param in (
        (prompt(["a"]), "inputs"),
        (prompt(echo=True), "echo"),
        (prompt([1, 2]), "inputs"),
    ):
        with pytest.raises(Unsupported) as caught:
            CLOUD.outgoing(request)
        assert caught.value.param == param


def test_completions_in_pieces_and_at_once():
    logprobs = {"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": [None], "text_offset": [0]}
    data = frames(
        {"choices": [{"index": 0, "text": " a", "logprobs": logprobs, "finish_reason": None}]},
        {"choices": [{"index": 1, "text": " b", "finish_reason": "length"}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 2}},
    )
    *chunks, end = read(prompt(n=2), data, 3)
    assert [(chunk.choice, chunk.delta.text) for chunk in chunks] == [(0, " a"), (1, " b")]
    assert chunks[0].logprobs == logprobs
    assert end == Finished(" a", Usage(2, 2), "stop", finish_reasons=("stop", "length"))
    assert not OPENAI.outgoing(prompt(best_of=3)).stream
    body = json.dumps({"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}).encode()
    assert read(prompt(best_of=3), body)[-1].result == "x"


def embeddings(inputs):
    return InferenceRequest("embeddings", "m", inputs=inputs, parameters={"dimensions": 2})


def test_embeddings_of_either_encoding_in_the_order_of_the_texts():
    out = OPENAI.outgoing(embeddings(["a", "b"]))
    assert (out.path, out.body["input"], out.body["dimensions"]) == ("embeddings", ["a", "b"], 2)
    packed = base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()
    body = {
        "data": [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": packed}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    chunk, end = read(embeddings(["a", "b"]), json.dumps(body).encode(), 11)
    assert isinstance(chunk, Chunk)
    assert end.result == chunk.delta.value == [[1.0, 2.0], [3.0, 4.0]]
    assert end.usage == Usage(7, 0)
    with pytest.raises(BackendFailed, match="2 vectors for 1 texts"):
        read(embeddings([5, 6, 7]), json.dumps(body).encode())
    with pytest.raises(BackendFailed, match="base64"):
        read(embeddings("a"), b'{"data": [{"embedding": "!!!"}]}')
    with pytest.raises(BackendFailed, match="inside its answer: no model"):
        read(embeddings("a"), b'{"error": {"message": "no model", "code": 500}}')


def test_names_and_tasks():
    assert {name: upstream_dialect(name).name for name in UPSTREAM_DIALECTS} == {
        name: name for name in UPSTREAM_DIALECTS
    }
    with pytest.raises(BadRequest, match="Did you mean 'openai'"):
        upstream_dialect("opnai")
    with pytest.raises(Unsupported):
        OPENAI.outgoing(InferenceRequest("translation", "m", inputs="a"))


@pytest.mark.parametrize(("head", "tail"), [(b"", b""), (b"data: ", b"\n")])
def test_an_event_without_an_end_is_given_up(head, tail):
    parser = Parser()
    piece = head + b"x" * (1 << 20) + tail

    def feed_too_much():
        for _ in range(MAX_EVENT >> 20):
            parser.feed(piece)

    with pytest.raises(BackendFailed, match="8 MiB"):
        feed_too_much() or parser.feed(piece)


def test_events_of_several_lines_names_and_comments():
    parser = Parser()
    data = b"event: a\r\ndata: 1\r\ndata:2\r\n: no\r\nid: 4\r\n\r\n\n\ndata\n\ndata: 3\n"
    found = [event for at in range(len(data)) for event in parser.feed(data[at : at + 1])]
    assert found == [("a", b"1\n2"), ("message", b"")]


@pytest.mark.parametrize("index", [-1, 128, 300_000, 2**70])
@pytest.mark.parametrize(
    ("request_", "what"),
    [(chat(), {"delta": {"content": "x"}}), (prompt(), {"text": "x"}), (chat(), {"finish_reason": "stop"})],
)
def test_a_choice_that_nobody_asked_for_is_refused(index, request_, what):
    """Whoever collects the answer would keep a place for each choice below it."""
    with pytest.raises(BackendFailed, match="number"):
        read(request_, frames({"choices": [{"index": index, **what}]}))


def test_as_many_choices_as_were_asked_for():
    asked = prompt(["a"] * 200)
    data = frames(*({"choices": [{"index": at, "text": "x", "finish_reason": "stop"}]} for at in range(200)))
    assert len(read(asked, data)[-1].finish_reasons) == 200


@pytest.mark.parametrize(
    "logprobs",
    [
        "abc",
        5,
        {"tokens": 5},
        {"tokens": ["x"], "token_logprobs": 5},
        {"content": 5},
        {"content": [5]},
        {"content": [{"token": "x"}]},
        {"content": [{"token": "x", "logprob": "y"}]},
        {"content": [{"token": "x", "logprob": 1, "top_logprobs": 5}]},
    ],
)
def test_log_probabilities_that_cannot_be_read_are_the_backends_fault(logprobs):
    data = frames(choice({"content": "x"}, logprobs=logprobs), choice(reason="stop"))
    with pytest.raises(BackendFailed, match="log probabilities"):
        read(chat(logprobs=True), data)
