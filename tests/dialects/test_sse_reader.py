"""Server-sent events out of bytes that are cut anywhere."""

import pytest

from uia_lab.dialects import sse
from uia_lab.domain.errors import BackendFailed

BODY = (
    ": hello\n\ndata: one\n\n"
    "event: named\r\ndata: two\r\ndata:three\r\nid: 7\r\n\r\n"
    "data: zwölf\n\n\n"
    "event: lost\n\n"
    ": OPENROUTER PROCESSING\n\n"
    "data: last"
).encode()
EVENTS = [
    ("message", b"one"),
    ("named", b"two\nthree"),
    ("message", "zwölf".encode()),
    ("message", b"last"),
]


def test_every_cut_gives_the_same_events():
    for at in range(len(BODY)):
        reader = sse.EventReader()
        assert [*reader.feed(BODY[:at]), *reader.feed(BODY[at:]), *reader.end()] == EVENTS
    reader = sse.EventReader()
    found = [event for at in range(len(BODY)) for event in reader.feed(BODY[at : at + 1])]
    assert found + reader.end() == EVENTS
    assert reader.end() == []


def test_an_event_that_never_ends_is_refused():
    reader = sse.EventReader()
    piece = b"x" * (sse.LARGEST_EVENT // 4)
    for _ in range(4):
        reader.feed(piece)
    with pytest.raises(BackendFailed, match="MiB"):
        reader.feed(b"x")
    lines = sse.EventReader()
    for _ in range(3):
        lines.feed(b"data: " + piece + b"\n")
    with pytest.raises(BackendFailed, match="MiB"):
        lines.feed(b"data: " + piece + b"\n")
