"""Ollama's own dialect, and what Text Embeddings Inference has beside OpenAI's: shapes of their docs."""

import json

import pytest

from uia_lab.dialects.registry import upstream_dialect
from uia_lab.domain.errors import BackendFailed, BadRequest, ContextTooLong, Unsupported
from uia_lab.domain.events import Finished, Reasoning, Text, ToolCall, Usage
from uia_lab.domain.requests import InferenceRequest

UMLAUT = {"token": "ü", "logprob": -0.1}
OLLAMA = upstream_dialect("ollama")
TEI = upstream_dialect("tei")
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}


def chat(messages=None, **parameters):
    messages = messages or [{"role": "user", "content": "hi"}]
    return InferenceRequest("chat", "m", messages=messages, parameters=parameters, stream=True)


def lines(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def read(request, data, size=None, dialect=OLLAMA):
    reader = dialect.reader(request, dialect.outgoing(request))
    pieces = [data] if size is None else [data[at : at + size] for at in range(0, len(data), size)]
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.end()]


DONE = {
    "model": "m",
    "message": {"role": "assistant", "content": ""},
    "done": True,
    "done_reason": "stop",
    "total_duration": 5,
    "prompt_eval_count": 3,
    "eval_count": 2,
    "eval_duration": 4,
}


def test_parameters_and_messages_in_its_form():
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what?"}, PICTURE]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "name": "f", "tool_call_id": "1", "content": "2"},
    ]
    schema = {"type": "object"}
    request = chat(
        messages,
        temperature=0,
        max_tokens=5,
        stop="x",
        repetition_penalty=1.1,
        tools=[{"type": "function"}],
        tool_choice="auto",
        reasoning_effort="low",
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        user="me",
    )
    out = OLLAMA.outgoing(request)
    assert out.path == "api/chat"
    assert out.body == {
        "model": "m",
        "stream": True,
        "options": {"temperature": 0, "num_predict": 5, "stop": ["x"], "repeat_penalty": 1.1},
        "tools": [{"type": "function"}],
        "think": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "format": schema,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "what?", "images": ["QUJD"]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "2", "tool_name": "f"},
        ],
    }


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"tool_choice": "required", "tools": [{}]}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_it_has_no_form_for_is_refused_by_name(parameters, param):
    with pytest.raises(Unsupported) as caught:
        OLLAMA.outgoing(chat(**parameters))
    assert caught.value.param == param


def test_bad_parts_are_refused():
    web = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    for part in (web, {"type": "input_audio"}):
        with pytest.raises(Unsupported):
            OLLAMA.outgoing(chat([{"role": "user", "content": [part]}]))
    call = {"function": {"name": "f", "arguments": "{"}}
    with pytest.raises(BadRequest):
        OLLAMA.outgoing(chat([{"role": "assistant", "tool_calls": [call]}]))


@pytest.mark.parametrize("size", [None, 1, 9])
def test_a_chat(size):
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    data = lines(
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"role": "assistant", "content": "ü"}, "logprobs": [UMLAUT], "done": False},
        {"message": {"role": "assistant", "content": "", "tool_calls": [call, call]}, "done": False},
        DONE,
    )
    *chunks, end = read(chat(), data, size)
    assert [chunk.delta for chunk in chunks] == [
        Reasoning("hm"),
        Text("ü"),
        ToolCall(0, "call_0", "f", '{"a":1}'),
        ToolCall(1, "call_1", "f", '{"a":1}'),
    ]
    assert chunks[1].logprobs == {"content": [UMLAUT]}
    assert end == Finished("ü", Usage(3, 2), "tool_calls")
    # The last line may lack its end.
    assert read(chat(), lines(DONE)[:-1])[-1].finish_reason == "stop"


def test_a_generation_from_a_prompt():
    request = InferenceRequest("generation", "m", inputs="Once")
    out = OLLAMA.outgoing(request)
    assert (out.path, out.body["prompt"]) == ("api/generate", "Once")
    data = lines({"response": "a"}, {"response": "b", "done": True, "done_reason": "length"})
    *_, end = read(request, data)
    assert (end.result, end.finish_reason, end.usage.estimated) == ("ab", "length", True)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (lines({"message": {"content": "a"}}), BackendFailed, "after 1 chunks without its end"),
        (lines({"error": "an error was encountered while running the model"}), BackendFailed, "running"),
        (lines({"error": "the input exceeds the context length"}), ContextTooLong, "context"),
        (b'{"message": 3}\n', BackendFailed, "malformed"),
        (b"<html>\n", BackendFailed, "malformed"),
        (b"", BackendFailed, "without its end"),
        (b"x" * (9 << 20), BackendFailed, "8 MiB"),
    ],
)
def test_what_is_no_whole_answer_has_failed(data, kind, message):
    with pytest.raises(kind, match=message):
        read(chat(), data)


def test_embeddings():
    request = InferenceRequest("embeddings", "m", inputs=["a", "b"], parameters={"dimensions": 2})
    out = OLLAMA.outgoing(request)
    assert (out.path, out.body) == ("api/embed", {"model": "m", "input": ["a", "b"], "dimensions": 2})
    body = json.dumps({"embeddings": [[1.0, 2.0], [3.0, 4.0]], "prompt_eval_count": 4}).encode()
    assert read(request, body)[-1] == Finished([[1.0, 2.0], [3.0, 4.0]], Usage(4))
    with pytest.raises(BackendFailed, match="0 vectors for 2 texts"):
        read(request, b"{}")
    with pytest.raises(Unsupported):
        OLLAMA.outgoing(InferenceRequest("embeddings", "m", inputs=[1, 2]))


def test_labels_of_a_classifier_and_vectors_of_the_rest():
    one = InferenceRequest("sentiment-analysis", "m", inputs="good")
    out = TEI.outgoing(one)
    assert (out.path, out.body["inputs"]) == ("predict", [["good"]])
    rows = [[{"label": "neg", "score": 0.1}, {"label": "pos", "score": 0.9}]]
    sorted_ = [{"label": "pos", "score": 0.9}, {"label": "neg", "score": 0.1}]
    assert read(one, json.dumps(rows).encode(), dialect=TEI)[-1].result == sorted_
    two = InferenceRequest("sentiment-analysis", "m", inputs=["good", "bad"])
    assert read(two, json.dumps(rows * 2).encode(), dialect=TEI)[-1].result == [sorted_] * 2
    with pytest.raises(BackendFailed, match="labels of 1 texts for 2"):
        read(two, json.dumps(rows).encode(), dialect=TEI)
    assert TEI.outgoing(InferenceRequest("embedding", "m", inputs="a")).path == "v1/embeddings"
    with pytest.raises(Unsupported):
        TEI.outgoing(InferenceRequest("translation", "m", inputs="a"))
