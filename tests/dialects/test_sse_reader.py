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
    "data: last\n\n"
).encode()
EVENTS = [
    ("message", b"one"),
    ("named", b"two\nthree"),
    ("message", "zwölf".encode()),
    ("message", b"last"),
]


def test_every_cut_gives_the_same_events():
    for at in range(len(BODY)):
        parser = sse.Parser()
        assert parser.feed(BODY[:at]) + parser.feed(BODY[at:]) == EVENTS
    parser = sse.Parser()
    assert [event for at in range(len(BODY)) for event in parser.feed(BODY[at : at + 1])] == EVENTS


def test_an_event_that_never_ends_is_refused():
    reader = sse.Parser()
    piece = b"x" * (sse.MAX_EVENT // 4)
    for _ in range(4):
        reader.feed(piece)
    with pytest.raises(BackendFailed, match="MiB"):
        reader.feed(b"x")
    lines = sse.Parser()
    for _ in range(3):
        lines.feed(b"data: " + piece + b"\n")
    lines.feed(b"data: " + piece[10:] + b"\n")
    with pytest.raises(BackendFailed, match="MiB"):
        lines.feed(b"data: " + piece + b"\n")
