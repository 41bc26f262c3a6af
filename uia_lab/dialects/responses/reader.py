"""The answer of an upstream that speaks OpenAI's Responses, as events."""

from collections.abc import Iterator
from typing import Any

from uia_lab.dialects.responses import NAME
from uia_lab.dialects.responses.tools import as_arguments, flat_name
from uia_lab.dialects.upstream_errors import typed_error
from uia_lab.dialects.upstream_reader import JsonReader, Piece, count, string
from uia_lab.domain.errors import InferenceError
from uia_lab.domain.events import Finished, Reasoning, Text, ToolCall, Usage

# HTTP statuses that the codes of errors inside a stream stand for.
_STATUSES = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "image_content_policy_violation": 400,
}
_TEXT = frozenset({"response.output_text.delta", "response.refusal.delta"})
_REASONING = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})


class ResponseReader(JsonReader):
    """Reads one response, streamed or whole.

    Args:
        stream: Whether it comes as events.
    """

    def __init__(self, *, stream: bool) -> None:
        super().__init__(stream=stream)
        self._tools: dict[int, int] = {}
        self._spoken: set[int] = set()
        self._usage = Usage(estimated=True)
        self._reason: str | None = None

    def finished(self, text: str) -> Finished | None:
        """The end of the response, once it has been told."""
        return None if self._reason is None else Finished(text, self._usage, self._reason)

    def event(self, event: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of one event."""
        kind = str(event.get("type"))
        index = event.get("output_index", 0)
        if kind in _TEXT:
            self._spoken.add(index)
            yield Text(string(event["delta"])), event.get("logprobs") or None
        elif kind in _REASONING:
            self._spoken.add(index)
            yield Reasoning(string(event["delta"])), None
        elif kind == "response.output_item.added":
            yield from self._begin(index, event["item"])
        elif kind == "response.function_call_arguments.delta":
            self._spoken.add(index)
            yield ToolCall(self._tools[index], arguments=string(event["delta"])), None
        elif kind == "response.output_item.done":
            yield from self._end(index, event["item"])
        elif kind in _ENDS:
            self._ended(kind.removeprefix("response."), event["response"])
        elif kind == "error":
            raise _error(event.get("error") or event)

    def _begin(self, index: int, item: dict[str, Any]) -> Iterator[Piece]:
        if item["type"] in ("function_call", "custom_tool_call"):
            self._tools[index] = len(self._tools)
            name = flat_name(string(item["name"]), item.get("namespace"))
            yield ToolCall(self._tools[index], string(item["call_id"]), name), None

    def _end(self, index: int, item: dict[str, Any]) -> Iterator[Piece]:
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
                    text = string(part["text" if part["type"] == "output_text" else "refusal"])
                    yield Text(text), part.get("logprobs") or None
        elif kind == "reasoning":
            parts = [*(item.get("summary") or ()), *(item.get("content") or ())]
            if index not in self._spoken and parts:
                yield Reasoning("\n".join(string(part["text"]) for part in parts)), None
            if seal := item.get("encrypted_content"):
                # The upstream knows the seal only together with the item's id.
                yield Reasoning("", f"{NAME}:{string(item['id'])}|{string(seal)}"), None

    def whole(self, body: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of a response that is not streamed."""
        for index, item in enumerate(body["output"]):
            yield from self._end(index, item)
        self._ended(body.get("status") or "completed", body)

    def _ended(self, status: str, response: dict[str, Any]) -> None:
        if status in ("failed", "cancelled"):
            raise _error(response.get("error") or {"message": f"the response was {status}"})
        if given := response.get("usage"):
            of_input = given.get("input_tokens_details") or {}
            of_output = given.get("output_tokens_details") or {}
            self._usage = Usage(
                count(given["input_tokens"]),
                count(given["output_tokens"]),
                cached_tokens=count(of_input.get("cached_tokens")),
                cache_creation_tokens=count(of_input.get("cache_write_tokens")),
                reasoning_tokens=count(of_output.get("reasoning_tokens")),
            )
        self._reason = "tool_calls" if self._tools else "stop"
        if status == "incomplete":
            why = (response.get("incomplete_details") or {}).get("reason")
            self._reason = "content_filter" if why == "content_filter" else "length"


def _error(error: dict[str, Any]) -> InferenceError:
    code = error.get("code")
    return typed_error(_STATUSES.get(str(code), 500), error.get("message"), {}, code)
