"""``POST /v1/chat/completions``: the wire to a call, and events to the wire."""

import time
from collections.abc import Mapping
from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer, as_text, logprob_entries
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object, kind
from uia_lab.dialects.openai_call import SAMPLING, Call, Checks, checked, streaming, usage_object
from uia_lab.dialects.passed_on import PassedOn
from uia_lab.dialects.relay import CHAT
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, Relayed, Text, ToolCall, Usage
from uia_lab.domain.requests import Wire
from uia_lab.domain.tasks import TEXT_GENERATION

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_LARGEST_ANSWER = 10_000_000


def parse(body: bytes) -> Call:
    """The call in a body; fields we do not know are ignored.

    Raises:
        BadRequest: The body or one of its fields is wrong; ``param`` names the field.
    """
    values = decode_object(body)
    fields = Fields(values)
    stream, include_usage = streaming(fields)
    parameters = _parameters(fields)
    return Call(
        TEXT_GENERATION,
        model=fields.text("model", 512),
        messages=_messages(values.get("messages")),
        parameters=parameters,
        stream=stream,
        include_usage=include_usage,
        choices=parameters.get("n", 1),
        hints=fields.mapping("uia") or {},
        wire=Wire(CHAT, body),
    )


def _form(fields: Fields) -> dict[str, Any] | None:
    # Plain text is what every backend gives: no feature to ask for.
    form = fields.mapping("response_format")
    return None if form == {"type": "text"} else form


def _modalities(fields: Fields) -> list[str] | None:
    modalities = fields.strings("modalities")
    return None if modalities == ["text"] else modalities


_CHECKS: Checks = {
    **SAMPLING,
    "max_tokens": lambda fields: fields.whole("max_tokens", 1, _LARGEST_ANSWER),
    "max_completion_tokens": lambda fields: fields.whole("max_completion_tokens", 1, _LARGEST_ANSWER),
    "logprobs": lambda fields: fields.flag("logprobs") or None,
    "top_logprobs": lambda fields: fields.whole("top_logprobs", 0, 20),
    "reasoning_effort": lambda fields: fields.text("reasoning_effort", 32),
    "audio": lambda fields: fields.mapping("audio"),
    "functions": lambda fields: fields.objects("functions") or None,
    "tools": lambda fields: fields.objects("tools") or None,
    "response_format": _form,
    "modalities": _modalities,
}


def _parameters(fields: Fields) -> dict[str, Any]:
    found = checked(_CHECKS, fields)
    if "top_logprobs" in found and "logprobs" not in found:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    for of, names in (("tools", ("tool_choice", "parallel_tool_calls")), ("functions", ("function_call",))):
        if of in found:
            found |= {name: value for name in names if (value := fields.values.get(name)) is not None}
    return found


def _messages(value: Any) -> list[dict[str, Any]]:
    if value is None:
        raise BadRequest("messages is missing", param="messages")
    if not isinstance(value, list) or not value:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    for index, message in enumerate(value):
        _check_message(message, f"messages[{index}]")
    return value


def _check_message(message: Any, param: str) -> None:
    if not isinstance(message, dict):
        raise BadRequest(f"{param} must be an object, not {kind(message)}", param=param)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        hint = suggestion(role[:40] if isinstance(role, str) else "", ROLES)
        raise BadRequest(f"{param}.role is {kind(role)}.{hint}", param=f"{param}.role")
    Fields(message, f"{param}.").objects("tool_calls")
    content = message.get("content")
    if content is None:
        if role == "assistant":
            return
        raise BadRequest(f"{param}.content is missing", param=f"{param}.content")
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise BadRequest(
            f"{param}.content must be a string or a list of parts, not {kind(content)}",
            param=f"{param}.content",
        )
    for index, part in enumerate(content):
        where = f"{param}.content[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadRequest(f"{where} must be an object with a type", param=where)
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise BadRequest(f"{where}.text must be a string", param=f"{where}.text")


def completion_id(request_id: str) -> str:
    """The id of an answer, made from the request's so that one leads to the other."""
    return f"chatcmpl-{request_id.removeprefix('req-')}"


def whole(call: Call, request_id: str, answer: Answer) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    return {
        "id": completion_id(request_id),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": call.model or answer.backend_id,
        "choices": [
            {
                "index": index,
                "message": _message(answer, index),
                "logprobs": _logprobs(choice.logprobs),
                "finish_reason": answer.finish_reason(index),
            }
            for index, choice in enumerate(answer.choices)
        ],
        "usage": usage_object(answer.finished.usage),
        "system_fingerprint": None,
    }


def _message(answer: Answer, index: int) -> dict[str, Any]:
    choice = answer.choices[index]
    calls = [choice.tool_calls[key] for key in sorted(choice.tool_calls)]
    # Clients take content null as "the answer is the tool calls".
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    if choice.reasoning:
        message["reasoning_content"] = "".join(choice.reasoning)
    return message


class Stream:
    """Renders the events of one answer as ``chat.completion.chunk`` events.

    Args:
        call: The call that is answered.
        request_id: Its id.
        backend_id: Who serves; names the model where the call named none.
    """

    def __init__(self, call: Call, request_id: str, backend_id: str) -> None:
        self._call = call
        self._head = {
            "id": completion_id(request_id),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": call.model or backend_id,
            "system_fingerprint": None,
        }
        self._opened: set[int] = set()
        self._passed = PassedOn(self._head, usage_asked=call.include_usage)

    def render(self, event: Event) -> bytes:
        """The bytes of one event; none for events the dialect does not show."""
        if isinstance(event, Relayed):
            return self._passed.take(event)
        if isinstance(event, Chunk):
            if self._passed.adopt():
                # What was passed on and goes on elsewhere is text of the first choice.
                self._opened.add(0)
            return self._piece(event.choice, _delta(event), logprobs=_logprobs(event.logprobs))
        return self._end(event) if isinstance(event, Finished) else b""

    def _piece(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
    ) -> bytes:
        if index not in self._opened:
            self._opened.add(index)
            delta = {"role": "assistant", "content": ""} | delta
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return sse.event(self._head | {"choices": [choice]})

    def _end(self, finished: Finished) -> bytes:
        if finished.last is not None:
            return self._passed.end(finished.last, lambda: self._usage(finished.usage))
        out = []
        if not self._opened and finished.result is not None:
            out.append(self._piece(0, {"content": as_text(finished.result)}))
        reasons = finished.finish_reasons
        for index in range(max(self._call.choices, len(self._opened))):
            reason = reasons[index] if index < len(reasons) else finished.finish_reason
            out.append(self._piece(index, {}, reason))
        if self._call.include_usage:
            out.append(self._usage(finished.usage))
        return b"".join(out) + sse.DONE

    def _usage(self, usage: Usage) -> bytes:
        return sse.event(self._head | {"choices": [], "usage": usage_object(usage)})


def _delta(chunk: Chunk) -> dict[str, Any]:
    delta = chunk.delta
    if isinstance(delta, Text):
        return {"content": delta.text}
    if isinstance(delta, Reasoning):
        return {"reasoning_content": delta.text}
    if isinstance(delta, ToolCall):
        function: dict[str, Any] = {"arguments": delta.arguments}
        call: dict[str, Any] = {"index": delta.index, "function": function}
        if delta.name is not None:
            function["name"] = delta.name
        if delta.id is not None:
            call |= {"id": delta.id, "type": "function"}
        return {"tool_calls": [call]}
    return {"content": as_text(delta.value)}


def _logprobs(logprobs: Any) -> Mapping[str, Any] | None:
    entries = logprob_entries(logprobs)
    return {"content": entries, "refusal": None} if entries else None
