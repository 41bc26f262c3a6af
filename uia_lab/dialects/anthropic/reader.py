"""The answer of an upstream that speaks Anthropic's Messages, as events."""

from collections.abc import Iterator
from typing import Any

from uia_lab.dialects.anthropic import NAME
from uia_lab.dialects.anthropic.errors import STATUSES
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.upstream_errors import typed_error
from uia_lab.dialects.upstream_reader import JsonReader, Piece, count, string
from uia_lab.domain.errors import InferenceError
from uia_lab.domain.events import Delta, Finished, Reasoning, Text, ToolCall, Usage

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessageReader(JsonReader):
    """Reads one message, streamed or whole.

    Args:
        stream: Whether it comes as events.
    """

    def __init__(self, *, stream: bool) -> None:
        super().__init__(stream=stream)
        self._tools: dict[int, int] = {}
        self._silent: dict[int, Any] = {}
        self._usage: dict[str, int] = {}
        self._reason: str | None = None
        self._sequence: str | None = None
        self._stopped = False

    def event(self, event: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of one event."""
        return ((delta, None) for delta in self._event(event))

    def whole(self, body: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of a message that is not streamed."""
        return ((delta, None) for delta in self._message(body))

    def finished(self, text: str) -> Finished | None:
        """The end of the message, once it has stopped."""
        if not self._stopped:
            return None
        given = self._usage.get
        cached, created = given("cache_read_input_tokens", 0), given("cache_creation_input_tokens", 0)
        usage = Usage(
            given("input_tokens", 0) + cached + created,
            given("output_tokens", 0),
            estimated=not self._usage,
            cached_tokens=cached,
            cache_creation_tokens=created,
        )
        return Finished(text, usage, _REASONS.get(self._reason or "", "stop"), stop_sequence=self._sequence)

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
                self._stopped = True
            case "error":
                raise _error(event)

    def _begin(self, index: int, block: dict[str, Any]) -> Iterator[Delta]:
        match block["type"]:
            case "text" if block.get("text"):
                yield Text(string(block["text"]))
            case "thinking" if block.get("thinking") or block.get("signature"):
                yield Reasoning(string(block.get("thinking", "")), _seal(block.get("signature")))
            case "redacted_thinking":
                yield Reasoning("", f"{NAME}-redacted:{string(block['data'])}")
            case "tool_use":
                self._tools[index] = len(self._tools)
                self._silent[index] = block.get("input") or {}
                yield ToolCall(self._tools[index], string(block["id"]), string(block["name"]))

    def _go_on(self, index: int, delta: dict[str, Any]) -> Iterator[Delta]:
        match delta["type"]:
            case "text_delta":
                yield Text(string(delta["text"]))
            case "thinking_delta":
                yield Reasoning(string(delta["thinking"]))
            case "signature_delta":
                yield Reasoning("", _seal(delta["signature"]))
            # Arguments of the upstream's own tools belong to blocks that are not shown.
            case "input_json_delta" if index in self._tools and delta["partial_json"]:
                self._silent.pop(index, None)
                yield ToolCall(self._tools[index], arguments=string(delta["partial_json"]))

    def _message(self, message: dict[str, Any]) -> Iterator[Delta]:
        if message.get("type") == "error":
            raise _error(message)
        for index, block in enumerate(message["content"]):
            yield from self._begin(index, block)
            if index in self._silent:
                yield ToolCall(self._tools[index], arguments=encode(self._silent.pop(index)).decode())
        self._ended(message)
        self._count(message.get("usage"))
        self._stopped = True

    def _ended(self, delta: dict[str, Any]) -> None:
        reason = delta.get("stop_reason")
        self._reason = string(reason) if reason is not None else self._reason
        sequence = delta.get("stop_sequence")
        self._sequence = string(sequence) if sequence is not None else self._sequence

    def _count(self, usage: dict[str, Any] | None) -> None:
        # Figures of later events are totals, and take the place of the earlier ones.
        for name in _COUNTS:
            if (value := (usage or {}).get(name)) is not None:
                self._usage[name] = count(value)


def _seal(signature: Any) -> str | None:
    return f"{NAME}:{string(signature)}" if signature else None


def _error(event: dict[str, Any]) -> InferenceError:
    error = event["error"]
    kind = error.get("type")
    return typed_error(STATUSES.get(kind, 500), error.get("message"), {}, kind)
