"""Server-sent events, written and read."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from uia_lab.dialects.json_body import encode

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"


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
