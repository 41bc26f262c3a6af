"""Events as a response of OpenAI's Responses, whole or streamed."""

import time
from collections.abc import Iterator
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text, logprob_entries
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.responses import NAME
from uia_lab.dialects.responses.output import Item, Message, Reasoned, Step, Used
from uia_lab.dialects.tool_calls import InTurn, gathered
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, ToolCall, Usage

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_SEAL = f"{NAME}:"


def response_id(request_id: str) -> str:
    """The id of an answer, made from the request's so that one leads to the other."""
    return f"resp_{request_id.removeprefix('req-')}"


def whole(call: Call, request_id: str, answer: Answer) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    stream = Stream(call, request_id, answer.backend_id)
    events: list[Event] = [*gathered(answer.chunks), answer.finished]
    for event in events:
        for _ in stream.steps(event):
            pass
    return stream.response


def usage_object(usage: Usage) -> dict[str, Any]:
    """Token counts under the names of this dialect; ``estimated`` is there only where they are."""
    counts: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_creation_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
    if usage.estimated:
        counts["estimated"] = True
    return counts


class Stream:
    """Renders the events of one answer as the events of a response.

    Args:
        call: The call that is answered.
        request_id: Its id.
        backend_id: Who serves; names the model where the call named none.
    """

    def __init__(self, call: Call, request_id: str, backend_id: str) -> None:
        self._known = call.shown["known"]
        self.response: dict[str, Any] = {
            "id": response_id(request_id),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": call.model or backend_id,
            "output": [],
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **call.shown["response"],
        }
        self._sequence = 0
        self._count = 0
        self._calls = InTurn()
        self._kind = ""
        self._item: Item | None = None

    def render(self, event: Event) -> bytes:
        """The bytes of one event; none for events the dialect does not show."""
        return b"".join(sse.event(step, step["type"]) for step in self.steps(event))

    def failed(self, code: str, message: str, param: str | None) -> bytes:
        """The bytes that end a response which has broken."""
        self.response |= {"status": "failed", "error": {"code": code, "message": message}}
        ends: list[Step] = [
            {"type": "error", "code": code, "message": message, "param": param},
            {"type": "response.failed", "response": self.response},
        ]
        steps = [*(() if self._sequence else self._begin()), *ends]
        return b"".join(sse.event(step, step["type"]) for step in map(self._numbered, steps))

    def steps(self, event: Event) -> Iterator[Step]:
        """The dialect's events for one of ours, numbered."""
        yield from map(self._numbered, self._steps(event))

    def _numbered(self, step: Step) -> Step:
        self._sequence += 1
        return step | {"sequence_number": self._sequence - 1}

    def _steps(self, event: Event) -> Iterator[Step]:
        # There is one answer in this dialect, whatever else a backend made.
        if not isinstance(event, (Chunk, Finished)) or (isinstance(event, Chunk) and event.choice):
            return
        if not self._sequence:
            yield from self._begin()
        if isinstance(event, Chunk):
            yield from self._delta(event)
            return
        yield from self._waiting_calls()
        if not self._count and event.result is not None and event.result != "":
            yield from self._text(as_text(event.result), [])
        yield from self._close()
        reason = _INCOMPLETE.get(event.finish_reason)
        status = "completed" if reason is None else "incomplete"
        self.response |= {
            "status": status,
            "incomplete_details": None if reason is None else {"reason": reason},
            "usage": usage_object(event.usage),
        }
        yield {"type": f"response.{status}", "response": self.response}

    def _begin(self) -> Iterator[Step]:
        # A copy, since what has been yielded is written later.
        begun = self.response | {"output": [], "status": "in_progress", "error": None}
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}

    def _delta(self, chunk: Chunk) -> Iterator[Step]:
        delta = chunk.delta
        if isinstance(delta, ToolCall):
            for piece in self._calls.take(delta):
                yield from self._tool(piece)
            return
        yield from self._waiting_calls()
        if isinstance(delta, Reasoning):
            yield from self._reasoning(delta)
        else:
            text = delta.text if hasattr(delta, "text") else as_text(delta.value)
            yield from self._text(text, logprob_entries(chunk.logprobs))

    def _text(self, text: str, logprobs: list[Any]) -> Iterator[Step]:
        if self._kind != "message":
            yield from self._start("message", Message(self._name("msg"), self._count))
        yield from self._grow(text, logprobs)

    def _reasoning(self, delta: Reasoning) -> Iterator[Step]:
        seal = delta.signature
        own = seal[len(_SEAL) :] if seal is not None and seal.startswith(_SEAL) else None
        if self._kind != "reasoning" and (delta.text or own):
            yield from self._start("reasoning", Reasoned(self._name("rs"), self._count))
        if delta.text:
            yield from self._grow(delta.text)
        if own and self._item is not None:
            self._item.item["encrypted_content"] = own
        if seal is not None:
            yield from self._close()

    def _waiting_calls(self) -> Iterator[Step]:
        # Clients take a call as whole once the next item begins.
        for piece in self._calls.rest():
            yield from self._tool(piece)

    def _tool(self, delta: ToolCall) -> Iterator[Step]:
        kind = f"tool {delta.index}"
        if self._kind != kind:
            call_id = delta.id or f"call_{self.response['id'][5:]}_{delta.index}"
            name = delta.name or ""
            used = Used(self._name("fc"), self._count, call_id, name, self._known.get(name))
            yield from self._start(kind, used)
        if delta.arguments:
            yield from self._grow(delta.arguments)

    def _name(self, kind: str) -> str:
        return f"{kind}_{self.response['id'][5:]}_{self._count}"

    def _start(self, kind: str, item: Item) -> Iterator[Step]:
        yield from self._close()
        self._kind, self._item = kind, item
        self._count += 1
        self.response["output"].append(item.item)
        yield from item.begin()

    def _grow(self, text: str, logprobs: list[Any] | None = None) -> Iterator[Step]:
        return iter(()) if self._item is None else self._item.add(text, logprobs)

    def _close(self) -> Iterator[Step]:
        item, self._kind, self._item = self._item, "", None
        if item is not None:
            yield from item.end()
