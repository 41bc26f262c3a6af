"""What the tests of upstreams share: an answer written down, read in pieces cut anywhere."""

import json

import pytest


def sse_bytes(*events, named=True):
    """Events as an upstream sends them."""
    parts = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        parts.append(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n")
    return "".join(parts).encode()


def read(reader, *pieces):
    """All events of an answer that comes in these pieces."""
    found = [event for piece in pieces for event in reader.feed(piece)]
    return [*found, *reader.end()]


@pytest.fixture
def cut_everywhere():
    """Reads a body whole, cut in two at every byte, and byte by byte; all of them give the same events."""

    def check(make_reader, body):
        whole = read(make_reader(), body)
        for at in range(len(body)):
            assert read(make_reader(), body[:at], body[at:]) == whole
        assert read(make_reader(), *(body[at : at + 1] for at in range(len(body)))) == whole
        return whole

    return check
