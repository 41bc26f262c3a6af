"""The answer of an upstream that speaks Anthropic's Messages, as events."""

from collections.abc import Iterator, Sequence
from typing import Any

from uia_lab.dialects.anthropic import NAME
from uia_lab.dialects.anthropic.errors import STATUSES
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.sse import EventReader
from uia_lab.dialects.upstream_errors import object_of, typed_error
from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.domain.events import Chunk, Delta, Event, Finished, Reasoning, Text, ToolCall, Usage

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class MessageReader:
    """Reads one message, streamed or whole.

    Args:
        stream: Whether it comes as events.
    """

    def __init__(self, *, stream: bool) -> None:
        self._events = EventReader() if stream else None
        self._body: list[bytes] = []
        self._chunks = 0
        self._text: list[str] = []
        self._tools: dict[int, int] = {}
        self._silent: dict[int, Any] = {}
        self._usage: dict[str, int] = {}
        self._reason: str | None = None
        self._sequence: str | None = None
        self._whole = False

    def feed(self, data: bytes) -> Sequence[Event]:
        """The events that became complete with these bytes, cut anywhere.

        Raises:
            InferenceError: The upstream told of an error in a body that had begun well.
        """
        if self._events is None:
            self._body.append(data)
            return ()
        return self._read(self._events.feed(data))

    def end(self) -> Sequence[Event]:
        """What is left when the body has ended; the last event is ``Finished``.

        Raises:
            BackendFailed: The body ended before the answer did, or was none.
        """
        if self._events is not None:
            found = self._read(self._events.end())
        else:
            found = self._guarded(self._message(object_of(b"".join(self._body))))
        if not self._whole:
            raise BackendFailed(f"the stream ended after {self._chunks} chunks without its end")
        cached, created = (self._usage.get(f"cache_{name}_input_tokens", 0) for name in ("read", "creation"))
        usage = Usage(
            self._usage.get("input_tokens", 0) + cached + created,
            self._usage.get("output_tokens", 0),
            estimated=not self._usage,
            cached_tokens=cached,
            cache_creation_tokens=created,
        )
        reason = _REASONS.get(self._reason or "", "stop")
        return [*found, Finished("".join(self._text), usage, reason, stop_sequence=self._sequence)]

    def _read(self, events: list[tuple[str, bytes]]) -> list[Event]:
        return self._guarded(
            delta
            for _, data in events
            # Some gateways end every stream as OpenAI does.
            if data != b"[DONE]"
            for delta in self._event(object_of(data))
        )

    def _guarded(self, deltas: Iterator[Delta]) -> list[Event]:
        found: list[Event] = []
        try:
            for delta in deltas:
                if isinstance(delta, Text):
                    self._text.append(delta.text)
                found.append(Chunk(self._chunks, delta))
                self._chunks += 1
        except InferenceError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackendFailed(f"sent an event that is not of its dialect ({error!r})") from error
        return found

    def _event(self, event: dict[str, Any]) -> Iterator[Delta]:
        match event.get("type"):
            case "message_start":
                self._count(event["message"].get("usage"))
            case "content_block_start":
                yield from self._begin(event["index"], event["content_block"])
            case "content_block_delta":
                yield from self._go_on(event["index"], event["delta"])
            case "content_block_stop" if event["index"] in self._silent:
                # A call without arguments, or one that came whole with its beginning.
                given = encode(self._silent.pop(event["index"])).decode()
                yield ToolCall(self._tools[event["index"]], arguments=given)
            case "message_delta":
                self._ended(event["delta"])
                self._count(event.get("usage"))
            case "message_stop":
                self._whole = True
            case "error":
                raise _error(event)

    def _begin(self, index: int, block: dict[str, Any]) -> Iterator[Delta]:
        match block["type"]:
            case "text" if block.get("text"):
                yield Text(_string(block["text"]))
            case "thinking" if block.get("thinking") or block.get("signature"):
                yield Reasoning(_string(block.get("thinking", "")), _seal(block.get("signature")))
            case "redacted_thinking":
                yield Reasoning("", f"{NAME}-redacted:{_string(block['data'])}")
            case "tool_use":
                self._tools[index] = len(self._tools)
                self._silent[index] = block.get("input") or {}
                yield ToolCall(self._tools[index], _string(block["id"]), _string(block["name"]))

    def _go_on(self, index: int, delta: dict[str, Any]) -> Iterator[Delta]:
        match delta["type"]:
            case "text_delta":
                yield Text(_string(delta["text"]))
            case "thinking_delta":
                yield Reasoning(_string(delta["thinking"]))
            case "signature_delta":
                yield Reasoning("", _seal(delta["signature"]))
            # Arguments of the upstream's own tools belong to blocks that are not shown.
            case "input_json_delta" if index in self._tools and delta["partial_json"]:
                self._silent.pop(index, None)
                yield ToolCall(self._tools[index], arguments=_string(delta["partial_json"]))

    def _message(self, message: dict[str, Any]) -> Iterator[Delta]:
        if message.get("type") == "error":
            raise _error(message)
        for index, block in enumerate(message["content"]):
            yield from self._begin(index, block)
            if index in self._silent:
                yield ToolCall(self._tools[index], arguments=encode(self._silent.pop(index)).decode())
        self._ended(message)
        self._count(message.get("usage"))
        self._whole = True

    def _ended(self, delta: dict[str, Any]) -> None:
        reason = delta.get("stop_reason")
        self._reason = _string(reason) if reason is not None else self._reason
        sequence = delta.get("stop_sequence")
        self._sequence = _string(sequence) if sequence is not None else self._sequence

    def _count(self, usage: dict[str, Any] | None) -> None:
        # Figures of later events are totals, and take the place of the earlier ones.
        self._usage |= {
            name: value
            for name, value in (usage or {}).items()
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0
        }


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no string")
    return value


def _seal(signature: Any) -> str | None:
    return f"{NAME}:{_string(signature)}" if signature else None


def _error(event: dict[str, Any]) -> InferenceError:
    error = event["error"]
    kind = error.get("type")
    return typed_error(STATUSES.get(kind, 500), error.get("message"), {}, kind)
