"""``POST /infer``: any task, in a shape of our own."""

from typing import Any

from uia_lab.dialects import sse
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object
from uia_lab.dialects.openai_call import Call, usage_object
from uia_lab.dialects.websocket_parameters import parameters_of
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, Result, Switched, Text, ToolCall
from uia_lab.domain.tasks import TEXT_GENERATION, canonical_task

FIELDS = ("task", "model", "inputs", "messages", "parameters", "routing", "stream")


def parse(body: bytes) -> Call:
    """The call ``{task, model?, inputs | messages, parameters?, routing?, stream?}``.

    Raises:
        BadRequest: A field that is missing, unknown or wrong.
    """
    fields = Fields(decode_object(body))
    fields.only(FIELDS)
    task = fields.text("task", 128)
    if task is None:
        raise BadRequest("task is missing", param="task")
    parameters = fields.mapping("parameters") or {}
    count = parameters.get("n", 1)
    task = canonical_task(task)
    return Call(
        task,
        fields.text("model", 256),
        inputs=fields.values.get("inputs"),
        messages=fields.objects("messages"),
        parameters=parameters_of(task, parameters, fields.values.get("inputs")),
        stream=fields.flag("stream"),
        choices=count if type(count) is int and 1 <= count <= 128 else 1,
        hints=fields.mapping("routing") or {},
    )


def whole(call: Call, request_id: str, answer: Answer) -> dict[str, Any]:
    """The answer in one piece; several choices of text are a list."""
    finished = answer.finished
    result: Any = finished.result
    if call.task == TEXT_GENERATION and len(answer.choices) > 1:
        result = [choice.text for choice in answer.choices]
    found = {
        "request_id": request_id,
        "task": call.task,
        "model": call.model,
        "result": result,
        "usage": usage_object(finished.usage),
        "finish_reason": finished.finish_reason,
        "backend": answer.backend_id,
        "attempts": len(finished.attempts),
    }
    if logprobs := answer.choices[0].logprobs:
        found["logprobs"] = logprobs
    return found


class Stream:
    """Server-sent events: ``chunk`` for each piece, ``switched``, and ``complete`` at the end."""

    def __init__(self, request_id: str, backend_id: str) -> None:
        self._head = {"request_id": request_id, "backend": backend_id}

    def render(self, event: Event) -> bytes:
        """The bytes of one event."""
        if isinstance(event, Chunk):
            data: dict[str, Any] = {"index": event.index, "choice": event.choice, **_delta(event)}
            if event.logprobs:
                data["logprobs"] = event.logprobs
            return sse.event(data, "chunk")
        if isinstance(event, Switched):
            switch = {"from": event.from_id, "to": event.to_id, "reason": event.reason}
            return sse.event({**switch, "at_index": event.at_index}, "switched")
        if isinstance(event, Finished):
            end = {**self._head, "usage": usage_object(event.usage), "finish_reason": event.finish_reason}
            return sse.event(end, "complete") + sse.DONE
        return b""


def _delta(chunk: Chunk) -> dict[str, Any]:
    match chunk.delta:
        case Text(text=text):
            return {"text": text}
        case Reasoning(text=text):
            return {"reasoning": text}
        case Result(value=value):
            return {"result": value}
        case ToolCall(index=index, id=call_id, name=name, arguments=arguments):
            return {"tool_call": {"index": index, "id": call_id, "name": name, "arguments": arguments}}
    return {}
