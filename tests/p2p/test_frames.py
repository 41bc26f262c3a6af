"""Frames: what they bound, and that it does not matter how a stream cuts them."""

import asyncio
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uia_lab.domain.errors import BackendFailed, BadRequest
from uia_lab.domain.events import Result, ToolCall
from uia_lab.p2p import borrowing, calls, messages
from uia_lab.p2p.frames import (
    LONGEST_LABEL,
    MAX_FRAME,
    MAX_WHOLE,
    MOST_PARTIAL,
    FrameError,
    Splitter,
    pack,
)
from uia_lab.p2p.messages import Ack, Cancel, Chunk, Done, Part, Request, ResumedFrom
from uia_lab.p2p.wire import request_of


def to_server():
    return Splitter(messages.ToServer)


def to_client():
    return Splitter(messages.ToClient)


def test_a_frame_is_a_length_and_json():
    data = pack(Chunk(id="1", seq=0, text="ä"))
    (length,) = struct.unpack(">I", data[:4])
    assert length == len(data) - 4
    assert json.loads(data[4:]) == {"type": "chunk", "id": "1", "seq": 0, "text": "ä"}


@given(st.lists(st.integers(1, 40), max_size=30), st.lists(st.text(max_size=50), min_size=1, max_size=5))
def test_cuts_do_not_matter(cuts, texts):
    sent = [Chunk(id="7", seq=number, text=text) for number, text in enumerate(texts)]
    data = b"".join(map(pack, sent))
    splitter, got = to_client(), []
    for cut in cuts:
        got += splitter.feed(data[:cut])
        data = data[cut:]
    got += splitter.feed(data)
    assert got == sent


def test_a_length_of_four_gigabytes_is_refused_before_anything_is_kept():
    with pytest.raises(FrameError, match="4,294,967,295"):
        list(to_server().feed(b"\xff\xff\xff\xff"))
    with pytest.raises(FrameError, match="over the limit"):
        list(to_server().feed(struct.pack(">I", MAX_FRAME + 1)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"type": "unknown"}',
        b'{"type": "chunk"}',
        b'{"type": "cancel"}',
        b'{"type": "cancel", "id": 7}',
        b'{"type": "request", "id": "1", "task": "x", "parameters": []}',
        b"[" * 100_000,
        b'{"type": "request", "id": "1", "task": "x", "inputs": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    ],
)
def test_what_is_no_frame_is_refused(body):
    with pytest.raises(FrameError):
        list(to_server().feed(struct.pack(">I", len(body)) + body))


def test_a_large_message_comes_in_parts_of_the_largest_size():
    inputs = ['\x00"\\ä😀' * 1000] * 500
    request = Request(id="r", task="text-embedding", inputs=inputs)
    data = pack(request)
    at, lengths = 0, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        lengths.append(length)
        at += 4 + length
    assert len(lengths) > 2
    assert max(lengths) <= MAX_FRAME
    splitter, got = to_server(), []
    for begin in range(0, len(data), 65_536):
        got += splitter.feed(data[begin : begin + 65_536])
    assert got == [request]


def test_parts_are_bounded_and_come_between_others():
    with pytest.raises(FrameError, match="over the limit"):
        pack(Request(id="r", task="x", inputs="a" * (MAX_WHOLE + 1)))
    splitter = to_server()
    large = pack(Request(id="large", task="x", inputs="a" * (MAX_FRAME + 1)))
    (first,) = struct.unpack_from(">I", large)
    got = list(splitter.feed(large[: 4 + first] + pack(Cancel(id="other")) + large[4 + first :]))
    assert [frame.id for frame in got] == ["other", "large"]
    flood = pack(Part(id="f", text="a" * 500_000))
    with pytest.raises(FrameError, match="over the limit"):
        list(splitter.feed(flood * 100))


@pytest.mark.parametrize(
    "parts",
    [
        [Part(id="f", text="")],
        [Part(id="l" * (LONGEST_LABEL + 1), text="a")],
        [Part(id=str(number), text="a") for number in range(MOST_PARTIAL + 1)],
    ],
    ids=["without text", "long label", "many begun"],
)
def test_parts_that_never_end_hold_a_bounded_amount(parts):
    splitter = to_server()
    with pytest.raises(FrameError):
        list(splitter.feed(b"".join(map(pack, parts))))


def test_a_message_in_very_many_parts_is_put_together_once():
    """Whoever adds up all of them at each takes minutes, while nobody else is served."""
    frame = Cancel(id="c" * 60_000)
    parts = [Part(id="p", text=letter) for letter in pack(frame)[4:].decode()]
    parts.append(Part(id="p", text="", last=True))
    assert list(to_server().feed(b"".join(map(pack, parts)))) == [frame]


def test_parts_of_parts_are_refused():
    inner = pack(Part(id="x", text="{}", last=True))[4:].decode()
    with pytest.raises(FrameError, match="part of parts"):
        list(to_server().feed(pack(Part(id="x", text=inner, last=True))))


async def test_an_answer_that_nobody_reads_holds_a_bounded_amount(monkeypatch):
    monkeypatch.setattr(calls, "MOST_HELD", 1000)
    for content in ({"text": "a" * 300}, {"delta": Result("a" * 300)}, {"text": "", "logprobs": "a" * 300}):
        inbox = calls.Inbox(asyncio.get_running_loop().call_soon, size=borrowing._size)
        frames = [Chunk(id="1", seq=number, **content) for number in range(4)]
        assert [inbox.put(frame) for frame in frames[:3]] == [True] * 3
        assert await inbox.get() == frames[0]
        assert inbox.put(frames[3])
        assert not inbox.put(frames[3])
        assert [await inbox.get() for _ in range(3)] == frames[1:]
        with pytest.raises(BackendFailed, match="more than it was asked for"):
            await inbox.get()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"task": "text-generation-" * 1000}, "task"),
        ({"model": "m" * 5000}, "model"),
        ({"session_id": "s" * 5000}, "session_id"),
        ({"via": ("a\r\nAuthorization: x",)}, "via"),
        ({"via": ("a\0",)}, "via"),
        ({"via": ("a",) * 17}, "via"),
        ({"resumed": ResumedFrom(text="x", tokens=-1_000_000, digest="d")}, "resumed.tokens"),
    ],
)
def test_what_a_peer_may_not_ask(fields, param):
    frame = Request(**{"id": "1", "task": "text-generation", "inputs": "x"} | fields)
    with pytest.raises(BadRequest) as caught:
        request_of(frame, "peer")
    assert caught.value.param == param
    assert len(caught.value.message) < 1000


def test_what_is_not_text_is_a_delta():
    frames = [
        Chunk(id="1", seq=0, delta=Result({"label": "a"})),
        Chunk(id="1", seq=1, delta=ToolCall(0, "c", "f", "{}"), choice=1),
        Done(id="1", chunks=2, finish_reasons=("stop", "length")),
    ]
    assert list(to_client().feed(b"".join(map(pack, frames)))) == frames
    assert list(to_server().feed(pack(Ack(id="1", seq=3)))) == [Ack(id="1", seq=3)]
