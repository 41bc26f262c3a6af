"""Server-sent events, written and read."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from uia_lab.dialects.json_body import encode
from uia_lab.domain.errors import BackendFailed

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"
MAX_EVENT = 8 << 20


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


class Parser:
    """Cuts a body that comes in pieces of any size into events; does no I/O and holds little."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = "message"
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Pairs (event name, data) that became complete with these bytes; comments are dropped.

        Raises:
            BackendFailed: An event is larger than MAX_EVENT bytes.
        """
        self._rest += data
        if len(self._rest) + self._size > MAX_EVENT:
            raise BackendFailed(f"sent one event of more than {MAX_EVENT >> 20} MiB")
        if b"\n" not in data:
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        found: list[tuple[str, bytes]] = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if not line:
                if self._data:
                    found.append((self._name, b"\n".join(self._data)))
                self._name, self._data, self._size = "message", [], 0
                continue
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                self._data.append(value)
                self._size += len(value)
            elif field == b"event":
                self._name = value.decode(errors="replace")
        return found
