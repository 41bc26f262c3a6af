"""Server-sent events."""

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
