"""Server-sent events, written and read."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from uia_lab.dialects.json_body import encode
from uia_lab.domain.errors import BackendFailed

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"
LARGEST_EVENT = 32 * 1024 * 1024


def event(data: Any, name: str | None = None) -> bytes:
    """One event.

    Args:
        data: JSON-ready value; its JSON has no line break, so one ``data:`` line holds it.
        name: The event's name, where the dialect has names.
    """
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(data) + b"\n\n"


async def events(lines: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, str]]:
    """Pairs (event name, data) of a stream of lines; comments are dropped.

    Args:
        lines: Lines with their ends, as a response body gives them.
    """
    name, data = "message", list[str]()
    async for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    if data:
        yield name, "\n".join(data)


class EventReader:
    """Reads events from pieces of a body that are cut anywhere; comments are dropped. Does no I/O."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._name = "message"
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[tuple[str, bytes]]:
        """Pairs (event name, data) that became complete with this piece.

        Raises:
            BackendFailed: An event of more than ``LARGEST_EVENT`` bytes.
        """
        self._held += len(piece)
        if self._held > LARGEST_EVENT:
            raise BackendFailed(f"sent an event of more than {LARGEST_EVENT // 2**20} MiB")
        self._pieces.append(piece)
        if b"\n" not in piece:
            return []
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        found = [event for line in lines if (event := self._line(line.rstrip(b"\r"))) is not None]
        self._held = len(rest) + sum(map(len, self._data))
        return found

    def end(self) -> list[tuple[str, bytes]]:
        """The last event, of a body that ends without the blank line behind it."""
        ends = (b"".join(self._pieces).rstrip(b"\r"), b"")
        self._pieces = []
        return [event for line in ends if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> tuple[str, bytes] | None:
        if not line:
            event = (self._name, b"\n".join(self._data)) if self._data else None
            self._name, self._data = "message", []
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        return None
