"""Events as a message of Anthropic's dialect, whole or streamed."""

from collections.abc import Iterator
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text
from uia_lab.dialects.anthropic import NAME
from uia_lab.dialects.anthropic.blocks import arguments_object
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.tool_calls import InTurn, gathered
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
    events: list[Event] = [*gathered(answer.chunks), answer.finished]
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
        self._calls = InTurn()
        self._kind = ""

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
        yield from self._waiting_calls()
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
            for piece in self._calls.take(delta):
                yield from self._tool(piece)
            return
        yield from self._waiting_calls()
        if isinstance(delta, Reasoning):
            yield from self._reasoning(delta)
        else:
            text = delta.text if isinstance(delta, Text) else as_text(delta.value)
            if self._kind != "text":
                yield from self._start("text", {"type": "text", "text": ""})
            yield self._piece({"type": "text_delta", "text": text})

    def _waiting_calls(self) -> Iterator[dict[str, Any]]:
        # Clients take a call as whole once the next block begins.
        for piece in self._calls.rest():
            yield from self._tool(piece)

    def _tool(self, delta: ToolCall) -> Iterator[dict[str, Any]]:
        kind = f"tool {delta.index}"
        if self._kind != kind:
            call_id = delta.id or f"toolu_{self.head['id'][4:]}_{delta.index}"
            block = {"type": "tool_use", "id": call_id, "name": delta.name or "", "input": {}}
            yield from self._start(kind, block)
        if delta.arguments:
            yield self._piece({"type": "input_json_delta", "partial_json": delta.arguments})

    def _reasoning(self, delta: Reasoning) -> Iterator[dict[str, Any]]:
        seal = delta.signature or ""
        if seal.startswith(_REDACTED):
            yield from self._start("redacted", {"type": "redacted_thinking", "data": seal[len(_REDACTED) :]})
            yield from self._close()
            return
        own = seal[len(_SEAL) :] if seal.startswith(_SEAL) else ""
        if self._kind != "thinking" and (delta.text or own):
            yield from self._start("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if delta.text:
            yield self._piece({"type": "thinking_delta", "thinking": delta.text})
        if own:
            yield self._piece({"type": "signature_delta", "signature": own})
        if seal:
            yield from self._close()

    def _start(self, kind: str, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self._kind = kind
        self._blocks += 1
        yield {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}

    def _piece(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._kind:
            self._kind = ""
            yield {"type": "content_block_stop", "index": self._blocks - 1}
