"""The messages of ``/ws`` that ask and register, to the domain and back, for both of its ends."""

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import msgspec

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.hints import MAX_EXCLUDED, MAX_PRIORITY, MAX_TIMEOUT_S, instance_ids, routing_hints
from uia_lab.dialects.hints import NAMES as SHORT_NAMES
from uia_lab.dialects.json_body import kind
from uia_lab.dialects.openai_chat import ROLES
from uia_lab.dialects.websocket_parameters import parameters_of
from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.domain.tasks import TEXT_GENERATION, canonical_task

MAX_ID = 256
LEAVING = 4000
"""Code of a close by which a worker says that it does not come back."""
REPLACED = 4001
"""Code of a close by which the server says that the backend is another connection's now, or was taken out."""
_HINTS = (
    "preferred_types", "required_protocols", "backend_id", "session_id", "priority", "deadline_s",
    "max_attempts", "hedge_after_s", "resume", "via", "excluded_backends",
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
    if body.get("inputs") is None:
        raise BadRequest("inputs is missing", param="inputs")
    routing, via = _routing(fields.mapping("routing") or {})
    task = canonical_task(task)
    inputs, messages = _said(task, body["inputs"])
    return InferenceRequest(
        task,
        fields.text("model", 512),
        inputs,
        messages,
        parameters_of(task, fields.mapping("parameters") or {}, inputs),
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
        parts = message["content"] if isinstance(message.get("content"), list) else []
        if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
            param = f"inputs[{index}].content"
            raise BadRequest(f"the parts of {param} must be objects with a type", param=param)
        Fields(message, f"inputs[{index}].").objects("tool_calls")
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
    via = instance_ids(fields.strings("via") or [], "routing.via")
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
        excluded_backends=short.excluded_backends
        or frozenset((fields.strings("excluded_backends") or [])[:MAX_EXCLUDED]),
        resume=values.get("resume") is None or fields.flag("resume"),
    )
    return hints, via
