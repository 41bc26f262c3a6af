"""``POST /v1/completions``: the wire to a call, and events to the wire."""

import time
from collections.abc import Sequence
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text, logprob_entries
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object
from uia_lab.dialects.openai_call import (
    MAX_ANSWERS,
    MAX_CHOICES,
    SAMPLING,
    Call,
    Checks,
    checked,
    streaming,
    texts,
    usage_object,
)
from uia_lab.dialects.passed_on import PassedOn
from uia_lab.dialects.relay import COMPLETIONS
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, Relayed, Text, ToolCall, Usage
from uia_lab.domain.requests import Wire
from uia_lab.domain.tasks import TEXT_GENERATION

_CHECKS: Checks = {
    **SAMPLING,
    "max_tokens": lambda fields: fields.whole("max_tokens", 0, 10_000_000),
    "max_completion_tokens": lambda fields: fields.whole("max_completion_tokens", 0, 10_000_000),
    "logprobs": lambda fields: fields.whole("logprobs", 0, 20),
    "echo": lambda fields: fields.flag("echo") or None,
    "suffix": lambda fields: fields.text("suffix", 1_000_000) if fields.values.get("suffix") else None,
}


def parse(body: bytes) -> Call:
    """The call in a body; fields we do not know are ignored.

    Raises:
        BadRequest: The body or one of its fields is wrong; ``param`` names the field.
    """
    fields = Fields(decode_object(body))
    prompt, prompts = texts(fields, "prompt")
    stream, include_usage = streaming(fields)
    parameters = checked(_CHECKS, fields)
    n = parameters.get("n", 1)
    if prompts * n > MAX_ANSWERS:
        raise BadRequest(f"{prompts} prompts times n={n} is more than {MAX_ANSWERS} answers", param="n")
    best_of = fields.whole("best_of", 1, MAX_CHOICES)
    if best_of is not None and best_of < n:
        raise BadRequest(f"best_of must be at least n, which is {n}", param="best_of")
    if best_of is not None and best_of > n:
        parameters["best_of"] = best_of
    return Call(
        TEXT_GENERATION,
        model=fields.text("model", 512),
        inputs=prompt,
        parameters=parameters,
        stream=stream,
        include_usage=include_usage,
        choices=prompts * n,
        hints=fields.mapping("uia") or {},
        wire=Wire(COMPLETIONS, body),
    )


def completion_id(request_id: str) -> str:
    """The id of an answer, made from the request's so that one leads to the other."""
    return f"cmpl-{request_id.removeprefix('req-')}"


def whole(call: Call, request_id: str, answer: Answer) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    return {
        "id": completion_id(request_id),
        "object": "text_completion",
        "created": int(time.time()),
        "model": call.model or answer.backend_id,
        "choices": [
            {
                "index": index,
                "text": choice.text,
                "logprobs": _legacy_logprobs(choice.logprobs, 0),
                "finish_reason": answer.finish_reason(index),
            }
            for index, choice in enumerate(answer.choices)
        ],
        "usage": usage_object(answer.finished.usage),
    }


class Stream:
    """Renders the events of one answer as ``text_completion`` events.

    Args:
        call: The call that is answered.
        request_id: Its id.
        backend_id: Who serves; names the model where the call named none.
    """

    def __init__(self, call: Call, request_id: str, backend_id: str) -> None:
        self._call = call
        self._head = {
            "id": completion_id(request_id),
            "object": "text_completion",
            "created": int(time.time()),
            "model": call.model or backend_id,
        }
        self._written: dict[int, int] = {}
        self._passed = PassedOn(self._head, usage_asked=call.include_usage)

    def render(self, event: Event) -> bytes:
        """The bytes of one event; none for events the dialect does not show."""
        if isinstance(event, Relayed):
            return self._passed.take(event)
        if isinstance(event, Chunk):
            if self._passed.adopt():
                self._written.setdefault(0, 0)
            # Reasoning and tool calls have no place in this dialect.
            if isinstance(event.delta, (Reasoning, ToolCall)):
                return b""
            text = event.delta.text if isinstance(event.delta, Text) else as_text(event.delta.value)
            return self._piece(event.choice, text, logprobs=logprob_entries(event.logprobs))
        return self._end(event) if isinstance(event, Finished) else b""

    def _piece(
        self, index: int, text: str, finish_reason: str | None = None, logprobs: Sequence[Any] = ()
    ) -> bytes:
        offset = self._written.get(index, 0)
        self._written[index] = offset + len(text)
        choice = {
            "index": index,
            "text": text,
            "logprobs": _legacy_logprobs(logprobs, offset),
            "finish_reason": finish_reason,
        }
        return sse.event(self._head | {"choices": [choice]})

    def _end(self, finished: Finished) -> bytes:
        if finished.last is not None:
            return self._passed.end(finished.last, lambda: self._usage(finished.usage))
        out = []
        if not self._written and finished.result is not None:
            out.append(self._piece(0, as_text(finished.result)))
        reasons = finished.finish_reasons
        for index in range(max(self._call.choices, len(self._written))):
            reason = reasons[index] if index < len(reasons) else finished.finish_reason
            out.append(self._piece(index, "", reason))
        if self._call.include_usage:
            out.append(self._usage(finished.usage))
        return b"".join(out) + sse.DONE

    def _usage(self, usage: Usage) -> bytes:
        return sse.event(self._head | {"choices": [], "usage": usage_object(usage)})


def _legacy_logprobs(entries: Sequence[Any], offset: int) -> dict[str, Any] | None:
    """Log probabilities in the shape of this older dialect; offsets count characters of the text."""
    if not entries:
        return None
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or ()} or None
            for entry in entries
        ],
        "text_offset": offsets,
    }
