"""The answer of an upstream that speaks OpenAI's Responses, as events."""

from collections.abc import Iterator
from typing import Any, NoReturn

from uia_lab.dialects.json_body import encode
from uia_lab.dialects.object_reader import ObjectReader, count, string
from uia_lab.dialects.responses import NAME
from uia_lab.dialects.responses.tools import as_arguments, flat_name
from uia_lab.dialects.upstream_errors import frame_error
from uia_lab.domain.events import Delta, Event, Reasoning, Text, ToolCall, Usage

_TEXT = frozenset({"response.output_text.delta", "response.refusal.delta"})
_REASONING = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_Piece = tuple[Delta, Any]


class ResponseReader(ObjectReader):
    """Reads one response, streamed or whole."""

    def __init__(self) -> None:
        super().__init__()
        self._tools: dict[int, int] = {}
        self._spoken: set[int] = set()

    def frame(self, frame: dict[str, Any]) -> Iterator[Event]:
        """The events of one event of the dialect.

        Raises:
            InferenceError: It is an error, or the end of a response that has failed.
        """
        kind = str(frame.get("type"))
        if kind == "error":
            _fail(frame.get("error") or frame)
        if kind in _ENDS:
            yield from self._finished(kind.removeprefix("response."), frame["response"])
            return
        for delta, logprobs in self._deltas(kind, frame):
            yield self.answer.chunk(delta, logprobs=logprobs)

    def message(self, message: dict[str, Any]) -> Iterator[Event]:
        """The events of a response that came at once.

        Raises:
            InferenceError: It has failed.
        """
        status = message.get("status") or "completed"
        for index, item in enumerate(message["output"]):
            for delta, logprobs in self._end(index, item):
                yield self.answer.chunk(delta, logprobs=logprobs)
        yield from self._finished(status, message)

    def _deltas(self, kind: str, frame: dict[str, Any]) -> Iterator[_Piece]:
        index = frame.get("output_index", 0)
        if kind in _TEXT:
            self._spoken.add(index)
            yield Text(string(frame["delta"])), _logprobs(frame)
        elif kind in _REASONING:
            self._spoken.add(index)
            yield Reasoning(string(frame["delta"])), None
        elif kind == "response.output_item.added":
            yield from self._begin(index, frame["item"])
        elif kind == "response.function_call_arguments.delta":
            self._spoken.add(index)
            yield ToolCall(self._tools[index], arguments=string(frame["delta"])), None
        elif kind == "response.output_item.done":
            yield from self._end(index, frame["item"])

    def _begin(self, index: int, item: dict[str, Any]) -> Iterator[_Piece]:
        if item["type"] in ("function_call", "custom_tool_call"):
            self._tools[index] = len(self._tools)
            name = flat_name(string(item["name"]), item.get("namespace"))
            yield ToolCall(self._tools[index], string(item["call_id"]), name), None

    def _end(self, index: int, item: dict[str, Any]) -> Iterator[_Piece]:
        """What of a whole item its pieces did not tell."""
        kind = item["type"]
        if kind in ("function_call", "custom_tool_call") and index not in self._tools:
            yield from self._begin(index, item)
        if kind == "custom_tool_call":
            yield ToolCall(self._tools[index], arguments=as_arguments(string(item["input"]))), None
        elif kind == "function_call" and index not in self._spoken:
            yield ToolCall(self._tools[index], arguments=string(item["arguments"]) or "{}"), None
        elif kind == "message" and index not in self._spoken:
            for part in item["content"]:
                if part["type"] in ("output_text", "refusal"):
                    text = part["text" if part["type"] == "output_text" else "refusal"]
                    yield Text(string(text)), _logprobs(part)
        elif kind == "reasoning":
            parts = [*(item.get("summary") or ()), *(item.get("content") or ())]
            if index not in self._spoken and parts:
                yield Reasoning("\n".join(string(part["text"]) for part in parts)), None
            if seal := item.get("encrypted_content"):
                # The upstream knows the seal only together with the item's id.
                yield Reasoning("", f"{NAME}:{string(item['id'])}|{string(seal)}"), None

    def _finished(self, status: str, response: dict[str, Any]) -> Iterator[Event]:
        if status in ("failed", "cancelled"):
            _fail(response.get("error") or {"message": f"the response was {status}"})
        if given := response.get("usage"):
            of_input = given.get("input_tokens_details") or {}
            of_output = given.get("output_tokens_details") or {}
            self.answer.usage = Usage(
                count(given["input_tokens"]),
                count(given["output_tokens"]),
                cached_tokens=count(of_input.get("cached_tokens")),
                cache_creation_tokens=count(of_input.get("cache_write_tokens")),
                reasoning_tokens=count(of_output.get("reasoning_tokens")),
            )
        reason = "tool_calls" if self._tools else "stop"
        if status == "incomplete":
            why = (response.get("incomplete_details") or {}).get("reason")
            reason = "content_filter" if why == "content_filter" else "length"
        self.answer.ended(reason)
        self.complete = True
        yield self.answer.finished()


def _logprobs(part: dict[str, Any]) -> Any:
    entries = part.get("logprobs")
    return {"content": entries} if entries else None


def _fail(error: dict[str, Any]) -> NoReturn:
    raise frame_error(encode({"error": error}))
