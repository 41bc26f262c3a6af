"""Events as a message of Anthropic's dialect, whole or streamed."""

from collections.abc import Iterator
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text
from uia_lab.dialects.anthropic import NAME
from uia_lab.dialects.anthropic.blocks import arguments_object
from uia_lab.dialects.openai_call import Call
from uia_lab.domain.events import Chunk, Delta, Event, Finished, Reasoning, Text, ToolCall, Usage

PING = sse.event({"type": "ping"}, "ping")
_SEAL, _REDACTED = f"{NAME}:", f"{NAME}-redacted:"
_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def message_id(request_id: str) -> str:
    """The id of an answer, made from the request's so that one leads to the other."""
    return f"msg_{request_id.removeprefix('req-')}"


def whole(call: Call, request_id: str, answer: Answer) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    stream = Stream(call, request_id, answer.backend_id)
    message = stream.head
    blocks: list[dict[str, Any]] = message["content"]
    pieces: list[dict[str, list[str]]] = []
    events: list[Event] = [*answer.chunks, answer.finished]
    for event in events:
        for step in stream.steps(event):
            match step:
                case {"type": "content_block_start", "content_block": block}:
                    blocks.append(block)
                    pieces.append({})
                case {"type": "content_block_delta", "index": index, "delta": {"type": _, **piece}}:
                    for name, text in piece.items():
                        pieces[index].setdefault(name, []).append(text)
                case {"type": "message_delta", "delta": end, "usage": usage}:
                    message |= end | {"usage": usage}
    for block, given in zip(blocks, pieces, strict=True):
        block |= {name: "".join(texts) for name, texts in given.items()}
        if block["type"] == "tool_use":
            block["input"] = arguments_object(block.pop("partial_json", ""))
    return message


def usage_object(usage: Usage) -> dict[str, Any]:
    """Token counts under Anthropic's names, which count what came from the cache apart."""
    counts: dict[str, Any] = {
        "input_tokens": max(0, usage.input_tokens - usage.cached_tokens - usage.cache_creation_tokens),
        "cache_creation_input_tokens": usage.cache_creation_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.estimated:
        counts["estimated"] = True
    return counts


class Stream:
    """Renders the events of one answer as the events of a message.

    Args:
        call: The call that is answered.
        request_id: Its id.
        backend_id: Who serves; names the model where the call named none.
    """

    def __init__(self, call: Call, request_id: str, backend_id: str) -> None:
        self.head: dict[str, Any] = {
            "id": message_id(request_id),
            "type": "message",
            "role": "assistant",
            "model": call.model or backend_id,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # The counts are known at the end, and the message_delta there has them all.
            "usage": usage_object(Usage()),
        }
        self._begun = False
        self._blocks = 0
        self._open: dict[str, int] = {}

    def render(self, event: Event) -> bytes:
        """The bytes of one event; none for events the dialect does not show."""
        return b"".join(sse.event(step, step["type"]) for step in self.steps(event))

    def steps(self, event: Event) -> Iterator[dict[str, Any]]:
        """The dialect's events for one of ours."""
        # There is one message in this dialect, whatever else a backend made.
        if not isinstance(event, (Chunk, Finished)) or (isinstance(event, Chunk) and event.choice):
            return
        if not self._begun:
            self._begun = True
            yield {"type": "message_start", "message": self.head}
        if isinstance(event, Chunk):
            yield from self._delta(event.delta)
            return
        if not self._blocks and event.result is not None and event.result != "":
            yield from self._delta(Text(as_text(event.result)))
        yield from self._close()
        reason = _REASONS.get(event.finish_reason, "end_turn")
        if event.stop_sequence is not None and reason == "end_turn":
            reason = "stop_sequence"
        end = {"stop_reason": reason, "stop_sequence": event.stop_sequence}
        yield {"type": "message_delta", "delta": end, "usage": usage_object(event.usage)}
        yield {"type": "message_stop"}

    def _delta(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if isinstance(delta, ToolCall):
            yield from self._tool(delta)
        elif isinstance(delta, Reasoning):
            yield from self._reasoning(delta)
        else:
            text = delta.text if isinstance(delta, Text) else as_text(delta.value)
            yield from self._block("text", {"type": "text", "text": ""})
            yield self._piece("text", {"type": "text_delta", "text": text})

    def _tool(self, delta: ToolCall) -> Iterator[dict[str, Any]]:
        key = f"tool {delta.index}"
        if key not in self._open:
            # Several calls may grow at once; a block of another kind ends them all.
            if not any(name.startswith("tool") for name in self._open):
                yield from self._close()
            call_id = delta.id or f"toolu_{self.head['id'][4:]}_{delta.index}"
            block = {"type": "tool_use", "id": call_id, "name": delta.name or "", "input": {}}
            yield self._start(key, block)
        if delta.arguments:
            yield self._piece(key, {"type": "input_json_delta", "partial_json": delta.arguments})

    def _reasoning(self, delta: Reasoning) -> Iterator[dict[str, Any]]:
        seal = delta.signature or ""
        if seal.startswith(_REDACTED):
            yield from self._close()
            yield self._start("redacted", {"type": "redacted_thinking", "data": seal[len(_REDACTED) :]})
            yield from self._close()
            return
        own = seal[len(_SEAL) :] if seal.startswith(_SEAL) else ""
        if delta.text or own:
            yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if delta.text:
            yield self._piece("thinking", {"type": "thinking_delta", "thinking": delta.text})
        if own:
            yield self._piece("thinking", {"type": "signature_delta", "signature": own})
        if seal:
            yield from self._close()

    def _block(self, key: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if key not in self._open:
            yield from self._close()
            yield self._start(key, block)

    def _start(self, key: str, block: dict[str, Any]) -> dict[str, Any]:
        self._open[key] = self._blocks
        self._blocks += 1
        return {"type": "content_block_start", "index": self._open[key], "content_block": block}

    def _piece(self, key: str, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._open[key], "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        for index in self._open.values():
            yield {"type": "content_block_stop", "index": index}
        self._open.clear()
