"""The answer of an upstream that speaks Anthropic's Messages, as events."""

from collections.abc import Iterator
from typing import Any

import msgspec

from uia_lab.dialects.anthropic import NAME
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.object_reader import ObjectReader, count, string
from uia_lab.dialects.upstream_errors import frame_error
from uia_lab.domain.events import Delta, Event, Finished, Reasoning, Text, ToolCall, Usage

# Any other is a proper end.
_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessageReader(ObjectReader):
    """Reads one message, streamed or whole."""

    def __init__(self) -> None:
        super().__init__()
        self._tools: dict[int, int] = {}
        self._silent: dict[int, Any] = {}
        self._counts: dict[str, int] = {}
        self._sequence: str | None = None

    def frame(self, frame: dict[str, Any]) -> Iterator[Event]:
        """The events of one event of the dialect.

        Raises:
            InferenceError: It is an error.
        """
        match frame.get("type"):
            case "error":
                raise frame_error(encode(frame))
            case "message_stop":
                self.complete = True
                yield self._finished()
            case _:
                for delta in self._deltas(frame):
                    yield self.answer.chunk(delta)

    def message(self, message: dict[str, Any]) -> Iterator[Event]:
        """The events of a message that came at once.

        Raises:
            InferenceError: It is an error.
        """
        if message.get("type") == "error":
            raise frame_error(encode(message))
        for index, block in enumerate(message["content"]):
            for delta in (*self._begin(index, block), *self._end(index)):
                yield self.answer.chunk(delta)
        self._ended(message)
        self._count(message.get("usage"))
        yield self._finished()

    def _deltas(self, frame: dict[str, Any]) -> Iterator[Delta]:
        match frame.get("type"):
            case "message_start":
                self._count(frame["message"].get("usage"))
            case "content_block_start":
                yield from self._begin(frame["index"], frame["content_block"])
            case "content_block_delta":
                yield from self._go_on(frame["index"], frame["delta"])
            case "content_block_stop":
                yield from self._end(frame["index"])
            case "message_delta":
                self._ended(frame["delta"])
                self._count(frame.get("usage"))

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

    def _end(self, index: int) -> Iterator[Delta]:
        # A call without arguments, or one that came whole with its beginning.
        if index in self._silent:
            yield ToolCall(self._tools[index], arguments=encode(self._silent.pop(index)).decode())

    def _ended(self, delta: dict[str, Any]) -> None:
        reason, sequence = delta.get("stop_reason"), delta.get("stop_sequence")
        if reason is not None:
            self.answer.ended(_REASONS.get(string(reason), "stop"))
        self._sequence = string(sequence) if sequence is not None else self._sequence

    def _count(self, usage: dict[str, Any] | None) -> None:
        # Figures of later events are totals, and take the place of the earlier ones.
        for name in _COUNTS:
            if (value := (usage or {}).get(name)) is not None:
                self._counts[name] = count(value)

    def _finished(self) -> Finished:
        given = self._counts.get
        cached, created = given("cache_read_input_tokens", 0), given("cache_creation_input_tokens", 0)
        if self._counts:
            self.answer.usage = Usage(
                given("input_tokens", 0) + cached + created,
                given("output_tokens", 0),
                cached_tokens=cached,
                cache_creation_tokens=created,
            )
        return msgspec.structs.replace(self.answer.finished(), stop_sequence=self._sequence)


def _seal(signature: Any) -> str | None:
    return f"{NAME}:{string(signature)}" if signature else None
