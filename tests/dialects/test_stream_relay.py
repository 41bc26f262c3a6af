"""The scanner of streams that are passed on, byte by byte and without a socket."""

import json

import pytest

from uia_lab.dialects.openai_chat_upstream import ChatReader
from uia_lab.dialects.relay import CHAT, relay_reader, relayed_call, relays
from uia_lab.dialects.stream_relay import StreamRelay
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Finished, Relayed, Text, Usage
from uia_lab.domain.requests import InferenceRequest, Resumed, Wire


def frame(**choice):
    choices = [{"index": 0, **choice}] if choice else []
    return b"data: " + json.dumps({"choices": choices, "usage": None}).encode() + b"\n\n"


ROLE, STOP = frame(delta={"role": "assistant"}), frame(delta={}, finish_reason="stop")
A = frame(delta={"content": "a"}, finish_reason=None)
QUOTED = frame(delta={"content": '"usage":1 "error" "finish_reason":"x" data: {}\n\n\r\n'})
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def make(*, usage_asked=False, choices=1):
    made = []

    def reader():
        made.append(ChatReader(choices))
        return made[-1]

    relay = StreamRelay(CHAT, reader, choices, usage_asked=usage_asked)
    return relay, made[0]


def run(relay, *pieces):
    events = [event for piece in pieces for event in relay.feed(piece)]
    return events + list(relay.end())


def wire(events):
    parts = [event.last if isinstance(event, Finished) else event for event in events]
    assert all(isinstance(part, Relayed) for part in parts)
    assert all(part.wire[0] == CHAT for part in parts)
    return b"".join(part.wire[1] for part in parts)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_cut_anywhere_it_is_the_same(newline):
    whole = (ROLE + b": comment\n\n" + A + QUOTED + A + STOP + USAGE + DONE).replace(b"\n", newline)
    kept = whole.replace(USAGE.replace(b"\n", newline), b"")
    for at in range(len(whole) + 1):
        relay, _ = make()
        events = run(relay, whole[:at], whole[at:])
        assert wire(events) == kept, at
        end = events[-1]
        assert (end.usage, end.finish_reason, end.result) == (Usage(2, 3), "stop", None)
        chunks = [
            chunk
            for event in events
            for chunk in (event.last if isinstance(event, Finished) else event).chunks()
        ]
        assert [chunk.index for chunk in chunks] == [0, 1, 2], at


def test_nothing_leaves_before_the_first_content():
    relay, _ = make()
    assert list(relay.feed(ROLE)) == []
    (first,) = relay.feed(A + A)
    assert (first.wire[1], first.count, first.index) == (ROLE + A + A, 2, 0)
    (second,) = relay.feed(A + A[:9])
    assert (second.wire[1], second.count, second.index) == (A, 1, 2)


def test_only_what_may_matter_is_decoded(monkeypatch):
    relay, reader = make()
    list(relay.feed(ROLE + A))
    seen = []
    event = reader.event
    monkeypatch.setattr(reader, "event", lambda name, data: seen.append(data) or event(name, data))
    list(relay.feed(A * 100))
    list(relay.feed(A + frame(delta={"content": "b"}, finish_reason=None) * 3))
    assert seen == []
    list(relay.feed(A * 3 + STOP + USAGE + DONE))
    assert len(seen) == 3


def test_several_choices_are_all_decoded():
    other = b'data: {"choices":[{"index":1,"delta":{"content":"b"}}]}\n\n'
    relay, _ = make(choices=2)
    with pytest.raises(BackendFailed, match="without a finish reason"):
        run(relay, ROLE + A, other + STOP + DONE)


def test_an_error_comes_behind_what_was_said_before_it():
    relay, _ = make()
    list(relay.feed(ROLE + A))
    events = relay.feed(A + b'data: {"error":{"message":"oom"}}\n\n')
    assert next(events).wire[1] == A
    with pytest.raises(BackendFailed, match="oom"):
        next(events)


def test_an_event_without_end_is_bounded():
    relay, _ = make()
    list(relay.feed(ROLE + A))
    megabytes = (event for _ in range(10) for event in relay.feed(b"x" * (1 << 20)))
    with pytest.raises(BackendFailed, match="8 MiB"):
        list(megabytes)


def request(body, **fields):
    values = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "wire": Wire(CHAT, body),
        **fields,
    }
    return InferenceRequest("text-generation", **values)


def test_who_relays():
    assert relays(request(b"{}"), CHAT)
    assert not relays(request(b"{}", wire=Wire("other", b"{}")), CHAT)
    assert not relays(request(b"{}", wire=None), CHAT)
    assert not relays(request(b"{}", resumed=Resumed("a", 1, "d")), CHAT), "it goes on rendered"


@pytest.mark.parametrize(
    ("options", "asks", "sent"),
    [
        (b"", False, {"include_usage": True}),
        (b',"stream_options":null', False, {"include_usage": True}),
        (b',"stream_options":{"include_usage":false,"a":1}', False, {"include_usage": True, "a": 1}),
        (b',"stream_options":{"include_usage":true}', True, {"include_usage": True}),
    ],
)
def test_usage_is_asked_for_and_shown_where_the_caller_asked(options, asks, sent):
    asked = request(b'{"stream":true' + options + b"}", stream=True)
    call = relayed_call("chat/completions", asked)
    assert json.loads(bytes(call.body["stream_options"])) == sent
    events = run(relay_reader(CHAT, ChatReader, asked, 1), ROLE + A + STOP + USAGE + DONE)
    assert (USAGE in wire(events)) is asks


def test_a_whole_answer_keeps_its_text():
    body = b'{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}'
    (end,) = run(relay_reader(CHAT, ChatReader, request(b"{}"), 1), body[:20], body[20:])
    assert (end.result, end.last.count, end.last.wire) == ("hi", 1, (CHAT, body))
    assert end.last.chunks() == [Chunk(0, Text("hi"))]
