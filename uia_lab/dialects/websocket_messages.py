"""The messages of ``/ws`` that carry requests and answers, to the domain and back, for both of its ends."""

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

import msgspec

from uia_lab.dialects.answer import Answer
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.hints import MAX_PRIORITY, MAX_TIMEOUT_S, MAX_VIA, routing_hints
from uia_lab.dialects.hints import NAMES as SHORT_NAMES
from uia_lab.dialects.json_body import kind
from uia_lab.dialects.openai_call import sampling, usage_object
from uia_lab.dialects.openai_chat import ROLES
from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    InferenceError,
    NotAllowed,
    Unauthenticated,
    suggestion,
)
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, Result, Text, ToolCall, Usage
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.domain.tasks import TEXT_GENERATION, canonical_task

MAX_ID = 256
MAX_TOKENS = 10_000_000
LEAVING = 4000
"""Code of a close by which a worker says that it does not come back."""
REPLACED = 4001
"""Code of a close by which the server says that the backend is another connection's now, or was taken out."""
_HINTS = (
    "preferred_types", "required_protocols", "backend_id", "session_id", "priority", "deadline_s",
    "max_attempts", "hedge_after_s", "resume", "via",
)  # fmt: skip


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself.

    Args:
        id: Id of the backend it becomes.
        name: Its name for people.
        tasks: Tasks it does.
        models: Models it serves; none takes any.
        max_concurrency: Requests it works on at once.
        streaming: Whether its answers come in pieces; whoever waits for a whole one is more patient.
    """

    id: str
    name: str
    tasks: tuple[str, ...]
    models: tuple[str, ...] = ()
    max_concurrency: int = 1
    streaming: bool = True


def request_of(body: Mapping[str, Any], request_id: str, principal: str) -> InferenceRequest:
    """The request that an ``inference`` message asks for.

    Args:
        body: The message.
        request_id: Id under which the manager will know it.
        principal: Name of who asks.

    Raises:
        BadRequest: A field is missing or wrong; it is named.
    """
    fields = Fields(body)
    task = fields.text("task", 128) or TEXT_GENERATION
    parameters = fields.mapping("parameters") or {}
    numbers = Fields(parameters, "parameters.")
    known = sampling(numbers)
    for name in ("max_tokens", "max_completion_tokens", "max_length"):
        if (value := numbers.whole(name, 1, MAX_TOKENS)) is not None:
            known[name] = value
    if body.get("inputs") is None:
        raise BadRequest("inputs is missing", param="inputs")
    routing, via = _routing(fields.mapping("routing") or {})
    inputs, messages = _said(canonical_task(task), body["inputs"])
    return InferenceRequest(
        task,
        fields.text("model", 512),
        inputs,
        messages,
        {**parameters, **known},
        stream=fields.flag("stream"),
        principal=principal,
        via=via,
        routing=routing,
        id=request_id,
    )


def fields_of(request: InferenceRequest, via: Sequence[str]) -> dict[str, Any]:
    """The fields of the ``inference`` message that asks a server elsewhere for a request's answer.

    Args:
        request: The request.
        via: Instances it has passed when it gets there.
    """
    hints = request.routing
    routing = {"session_id": hints.session_id, "priority": hints.priority or None, "via": list(via) or None}
    return {
        "model": request.model,
        "task": request.task,
        "inputs": request.inputs if request.messages is None else list(request.messages),
        "parameters": dict(request.parameters),
        # In pieces nothing is lost: reasoning, tool calls and every choice come as they are.
        "stream": request.stream or request.task == TEXT_GENERATION,
        "routing": {name: value for name, value in routing.items() if value is not None},
    }


def execute_fields(request: InferenceRequest) -> dict[str, Any]:
    """The fields of the ``execute`` message that gives a worker a request."""
    return {
        "task": request.task,
        "model": request.model,
        "inputs": request.inputs if request.messages is None else list(request.messages),
        "parameters": dict(request.parameters),
        "stream": request.stream,
    }


def executed(body: Mapping[str, Any]) -> InferenceRequest:
    """The request in an ``execute`` message."""
    inputs, messages = _said(canonical_task(body["task"]), body["inputs"])
    return InferenceRequest(
        body["task"],
        body.get("model"),
        inputs,
        messages,
        body.get("parameters") or {},
        stream=bool(body.get("stream")),
        id=str(body["request_id"]),
    )


def registration_of(body: Mapping[str, Any]) -> Registration:
    """What a ``register`` message says.

    Raises:
        BadRequest: A field is missing or wrong; it is named.
    """
    values = Fields(body).mapping("backend")
    if values is None:
        raise BadRequest("backend is missing", param="backend")
    fields = Fields(values, "backend.")
    backend_id = fields.text("id", 128)
    if backend_id is None:
        raise BadRequest("backend.id is missing", param="backend.id")
    several = values.get("tasks") if values.get("tasks") is not None else values.get("task")
    tasks = [several] if isinstance(several, str) else several
    if tasks is None:
        raise BadRequest("backend.tasks is missing", param="backend.tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise BadRequest(f"backend.tasks must be tasks' names, not {kind(several)}", param="backend.tasks")
    models = fields.strings("models") or []
    if not all(0 < len(model) <= 512 for model in models) or len(models) > 1000:
        raise BadRequest("backend.models must be at most 1000 names", param="backend.models")
    return Registration(
        id=backend_id,
        name=fields.text("name", 256) or backend_id,
        tasks=tuple(canonical_task(task) for task in tasks),
        models=tuple(models),
        max_concurrency=fields.whole("max_concurrency", 1, 10_000) or 1,
        streaming=values.get("streaming") is None or fields.flag("streaming"),
    )


def piece_of(chunk: Chunk) -> dict[str, Any]:
    """The fields of a chunk: ``chunk`` is its text or result, so that joining them gives the answer.

    Reasoning and tool calls are no part of the answer: they come beside an empty ``chunk``.
    """
    delta = chunk.delta
    fields: dict[str, Any] = {"index": chunk.index}
    if isinstance(delta, Reasoning):
        fields |= {"chunk": "", "reasoning": delta.text}
    elif isinstance(delta, ToolCall):
        fields |= {"chunk": "", "tool_call": delta}
    else:
        fields["chunk"] = delta.text if isinstance(delta, Text) else delta.value
    if chunk.choice:
        fields["choice"] = chunk.choice
    if chunk.logprobs:
        fields["logprobs"] = chunk.logprobs
    return fields


def end_of(finished: Finished) -> dict[str, Any]:
    """The fields that every proper end has."""
    fields = {"usage": usage_object(finished.usage), "finish_reason": finished.finish_reason}
    if len(finished.finish_reasons) > 1:
        fields["finish_reasons"] = list(finished.finish_reasons)
    return fields


def whole_of(answer: Answer) -> dict[str, Any]:
    """The fields of a whole answer: ``result``, and beside it what only some answers have."""
    first = answer.choices[0]
    result = answer.finished.result
    fields = {"result": first.text if result is None else result, **end_of(answer.finished)}
    if len(answer.choices) > 1:
        fields["choices"] = [choice.text for choice in answer.choices]
    if first.tool_calls:
        fields["tool_calls"] = list(first.tool_calls.values())
    if first.reasoning:
        fields["reasoning"] = "".join(first.reasoning)
    return fields


class AnswerReader:
    """Turns the messages of one answer into events, from a worker or from a server elsewhere."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._index = 0

    def feed(self, name: str, body: Mapping[str, Any]) -> Iterator[Event]:
        """The events in a message; the last of an answer is ``Finished``.

        Args:
            name: ``chunk``, ``complete``, ``result`` or ``fail``; anything else is a server's error.
            body: The message.

        Raises:
            InferenceError: The other side failed, or broke the protocol.
        """
        match name:
            case "chunk":
                yield self._chunk(body)
            case "complete":
                yield self._finished(_joined(self._pieces), body)
            case "result":
                if "result" not in body:
                    raise BackendFailed("an answer without result")
                value = body["result"]
                if not self._index:
                    yield Chunk(0, Text(value) if isinstance(value, str) else Result(value))
                yield self._finished(value, body)
            case "fail":
                raise _of_worker(error_of(body))
            case _:
                raise _of_server(error_of(body))

    def _chunk(self, body: Mapping[str, Any]) -> Chunk:
        value, choice = body.get("chunk"), body.get("choice", 0)
        if value is None or type(choice) is not int or not 0 <= choice < 128:
            raise BackendFailed("a chunk without content")
        try:
            if (thought := body.get("reasoning")) is not None:
                delta: Text | Reasoning | ToolCall | Result = Reasoning(str(thought))
            elif (call := body.get("tool_call")) is not None:
                delta = msgspec.convert(call, ToolCall)
            else:
                delta = Text(value) if isinstance(value, str) else Result(value)
                if choice == 0:
                    self._pieces.append(value)
        except msgspec.ValidationError as error:
            raise BackendFailed(f"a tool call that cannot be read: {error}") from None
        chunk = Chunk(self._index, delta, choice, body.get("logprobs"))
        self._index += 1
        return chunk

    def _finished(self, result: Any, body: Mapping[str, Any]) -> Finished:
        reason, reasons = body.get("finish_reason"), body.get("finish_reasons")
        return Finished(
            result,
            _usage(body.get("usage")),
            reason if isinstance(reason, str) else "stop",
            finish_reasons=tuple(map(str, reasons)) if isinstance(reasons, list) else (),
        )


def error_of(body: Mapping[str, Any]) -> InferenceError:
    """The typed error of an ``inference_error``, ``error`` or ``fail``; an unknown code is a fault."""
    cls = _by_code().get(str(body.get("code")), BackendFailed)
    message = body.get("error") or body.get("message")
    text = message[:2000] if isinstance(message, str) else "it failed and did not say why"
    param, later = body.get("param"), body.get("retry_after")
    return cls(
        text,
        param=param if isinstance(param, str) else None,
        retry_after=float(later) if isinstance(later, (int, float)) and 0 <= later < 1e6 else None,
    )


def error_fields(error: InferenceError) -> dict[str, Any]:
    """The fields of an error beside its text."""
    fields = {"code": error.code, "param": error.param, "retry_after": error.retry_after}
    return {name: value for name, value in fields.items() if value is not None}


def _of_worker(error: InferenceError) -> InferenceError:
    """What a worker may say of a request; who may ask, and who cancels, is not its to say."""
    foreign = (Unauthenticated, NotAllowed, Cancelled, DeadlineExceeded)
    return BackendFailed(error.message) if isinstance(error, foreign) else error


def _of_server(error: InferenceError) -> InferenceError:
    """What the end of a request at a server elsewhere means here, where it may go on at another one."""
    if isinstance(error, Cancelled):
        return BackendFailed(f"it was cancelled there: {error.message}")
    if isinstance(error, DeadlineExceeded):
        return BackendTimeout(f"it took too long there: {error.message}")
    return error


def _by_code() -> dict[str, type[InferenceError]]:
    return {cls.code: cls for cls in InferenceError.__subclasses__()}


def _said(task: str, inputs: Any) -> tuple[Any, list[dict[str, Any]] | None]:
    """Inputs, or the chat messages that they are."""
    chat = (
        task == TEXT_GENERATION
        and isinstance(inputs, list)
        and bool(inputs)
        and all(isinstance(item, dict) and "role" in item for item in inputs)
    )
    if not chat:
        return inputs, None
    for index, message in enumerate(inputs):
        if message["role"] not in ROLES or not isinstance(message.get("content", ""), (str, list, NoneType)):
            raise BadRequest(
                f"inputs[{index}] must have a role out of {', '.join(sorted(ROLES))} and content that is "
                "a string or a list of parts",
                param=f"inputs[{index}]",
            )
    return None, inputs


def _routing(values: dict[str, Any]) -> tuple[RoutingHints, tuple[str, ...]]:
    """Hints under the names of RoutingHints, or under the short ones of the HTTP doors; and ``via``."""
    for name in values:
        if name not in _HINTS and name not in SHORT_NAMES:
            raise BadRequest(
                f"routing.{name} is unknown.{suggestion(name, {*_HINTS, *SHORT_NAMES})}",
                param=f"routing.{name}",
            )
    fields = Fields(values, "routing.")
    short = routing_hints({}, {name: values[name] for name in SHORT_NAMES if name in values})
    preferred = fields.strings("preferred_types") or []
    via = fields.strings("via") or []
    if len(via) > MAX_VIA or any(len(item) > 128 for item in via):
        raise BadRequest(f"routing.via must be at most {MAX_VIA} short ids", param="routing.via")
    hints = RoutingHints(
        preferred_types=short.preferred_types
        or tuple(member(BackendType, item, "routing.preferred_types") for item in preferred[:16]),
        required_protocols=frozenset((fields.strings("required_protocols") or [])[:16]),
        backend_id=short.backend_id or fields.text("backend_id", 256),
        session_id=short.session_id or fields.text("session_id", 256),
        priority=fields.whole("priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        deadline_s=short.deadline_s or fields.number("deadline_s", 0.001, MAX_TIMEOUT_S),
        max_attempts=fields.whole("max_attempts", 1, 100),
        hedge_after_s=fields.number("hedge_after_s", 0, MAX_TIMEOUT_S),
        resume=values.get("resume") is None or fields.flag("resume"),
    )
    return hints, tuple(via)


def _usage(value: Any) -> Usage:
    """Token counts under OpenAI's names or ours; an estimate is made where they are absent."""
    if not isinstance(value, dict):
        return Usage(estimated=True)
    counts = []
    for ours, theirs in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
        count = value.get(ours, value.get(theirs, 0))
        counts.append(count if type(count) is int and 0 <= count < 2**53 else 0)
    return Usage(counts[0], counts[1], estimated=bool(value.get("estimated")))


def _joined(pieces: list[Any]) -> Any:
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return pieces[0] if len(pieces) == 1 else pieces
