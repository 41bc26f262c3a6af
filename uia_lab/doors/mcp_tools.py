"""The five tools of the MCP door, over a service."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

from uia_lab.access.principals import INFER, READ, Principal
from uia_lab.dialects.answer import Answer, as_text
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.mcp import ROUTE, SUPPORTED
from uia_lab.dialects.websocket_answers import whole_of
from uia_lab.dialects.websocket_requests import request_of
from uia_lab.domain.backends import BackendInfo
from uia_lab.domain.events import Chunk, Result, Started, Text
from uia_lab.domain.requests import new_request_id
from uia_lab.doors import mcp_shapes as shapes

if TYPE_CHECKING:
    from uia_lab.unified_inference_service import UnifiedInferenceService

Progress = Callable[[int, str], Awaitable[None]]


@dataclass(slots=True)
class Caller:
    """Who calls a tool, and what they have under way.

    Args:
        principal: Who.
        active: Called while inference goes on.
        via: Instances that the HTTP request says it has passed.
        running: Ids of the requests under way; whoever sees the caller leave cancels them.
    """

    principal: Principal
    active: Callable[[], None] = lambda: None
    via: tuple[str, ...] = ()
    running: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool.

    Args:
        caller: Who calls.
        via: Instances the call has passed.
        progress: Tells the caller of a piece of the answer; None where nobody asked to be told.
    """

    caller: Caller
    via: tuple[str, ...] = ()
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Args:
        name: Its name.
        description: What it does, for the model that calls it.
        arguments: What it takes.
        result: What it gives.
        run: Does it.
        scopes: Scopes of which its caller needs one.
        read_only: Whether it changes nothing.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    result: type[BaseModel]
    run: Callable[[Any, Call], Awaitable[BaseModel]]
    scopes: tuple[str, ...] = (READ,)
    read_only: bool = True


class Tools:
    """The tools; every answer comes from the manager, none is made up.

    Args:
        service: What they speak for.
    """

    def __init__(self, service: "UnifiedInferenceService") -> None:
        self._service = service
        self._manager = service.get_backend_manager()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.table: Mapping[str, Tool] = {
            tool.name: tool
            for tool in (
                Tool(
                    "list_inference_backends",
                    "Lists the inference backends with their type, status, tasks, models and metrics.",
                    shapes.BackendFilter,
                    shapes.BackendList,
                    self._list,
                ),
                Tool(
                    "get_backend_status",
                    "The status of everything: totals of requests, the strategy, every backend.",
                    shapes.Nothing,
                    shapes.Status,
                    self._status,
                ),
                Tool(
                    "select_backend_for_inference",
                    "Says which backend would serve a request now and why not the others; runs nothing.",
                    shapes.Selection,
                    shapes.Selected,
                    self._select,
                ),
                Tool(
                    ROUTE,
                    "Runs an inference request on the best backend and gives its answer. Text comes as "
                    "progress while it is generated.",
                    shapes.InferenceCall,
                    shapes.Answer,
                    self._route,
                    scopes=(INFER,),
                    read_only=False,
                ),
                Tool(
                    SUPPORTED,
                    "The tasks that can be asked for now, each with the models that do it.",
                    shapes.Nothing,
                    shapes.SupportedTasks,
                    self._supported,
                    scopes=(READ, INFER),
                ),
            )
        }

    async def close(self) -> None:
        """Done when every request that was under way has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _list(self, asked: shapes.BackendFilter, _: Call) -> shapes.BackendList:
        found = self._manager.list_backends(asked.backend_type, asked.status, asked.task)
        return shapes.BackendList(backends=[_backend(item) for item in found])

    async def _status(self, _asked: shapes.Nothing, _: Call) -> shapes.Status:
        return shapes.Status.model_validate(self._manager.get_backend_status_report())

    async def _select(self, asked: shapes.Selection, _: Call) -> shapes.Selected:
        wanted = (asked.task, asked.model, asked.preferred_types, asked.required_protocols)
        decision = self._manager.explain(*wanted)
        chosen = self._manager.select_backend_for_task(*wanted)
        return shapes.Selected(
            backend=None if chosen is None else _backend(chosen),
            strategy=decision.strategy,
            candidates=[
                shapes.Candidate(
                    backend_id=item.backend_id, kept=item.kept, reason=item.reason, score=item.score
                )
                for item in decision.candidates
            ],
        )

    async def _supported(self, _: shapes.Nothing, call: Call) -> shapes.SupportedTasks:
        permits, who = self._service.limits.permits, call.caller.principal.name
        tasks: dict[str, set[str]] = {}
        for backend in self._manager.list_backends():
            if backend.routable and backend.enabled:
                models = {model for model in backend.models if permits(who, model)}
                for task in backend.capabilities.supported_tasks if models or not backend.models else ():
                    tasks.setdefault(task, set()).update(models)
        return shapes.SupportedTasks(
            instance_id=self._manager.instance_id,
            tasks={task: sorted(models) for task, models in sorted(tasks.items())},
        )

    async def _route(self, asked: shapes.InferenceCall, call: Call) -> shapes.Answer:
        request_id = new_request_id()
        # A task of its own: MCP cancels by a scope that cancels every wait within it again and again, and the
        # journey of a request has to wait for a few things when it ends.
        task = asyncio.create_task(self._journey(asked, call, request_id), name="uia-mcp-request")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        call.caller.running.add(request_id)
        try:
            await asyncio.wait({task})
            return task.result()
        finally:
            call.caller.running.discard(request_id)
            if not task.done() and not self._manager.cancel(request_id):
                # It has not begun yet.
                task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Whoever left before the end does not look at it.
            task.exception()

    async def _journey(self, asked: shapes.InferenceCall, call: Call, request_id: str) -> shapes.Answer:
        routing = {"backend_id": asked.backend_id, "deadline_s": asked.timeout, "via": list(call.via)}
        fields = asked.model_dump(include={"task", "model", "inputs", "parameters"})
        body = fields | {"stream": call.progress is not None, "routing": routing}
        request = request_of(body, request_id, call.caller.principal.name)
        answer = Answer(request.parameters.get("n") or 1)
        model = request.model
        async with self._manager.open(request) as events:
            async for event in events:
                call.caller.active()
                answer.add(event)
                if isinstance(event, Started):
                    model = event.decision.get("model") or request.model
                elif isinstance(event, Chunk) and call.progress is not None:
                    await call.progress(event.index + 1, _said(event))
                # A backend that never waits would otherwise keep the loop from everybody else.
                await asyncio.sleep(0)
        whole = msgspec.json.decode(encode(whole_of(answer)))
        return shapes.Answer(
            request_id=request_id,
            task=request.task,
            model=model,
            backend=answer.backend_id,
            attempts=[
                shapes.Attempt(backend=item.backend_id, outcome=item.outcome, error=item.error)
                for item in answer.finished.attempts
            ],
            **whole,
        )


def _backend(info: BackendInfo) -> shapes.Backend:
    return shapes.Backend.model_validate(info.to_dict())


def _said(chunk: Chunk) -> str:
    """The text of the first choice in a piece; of others, and of thoughts, only that there was one."""
    if chunk.choice == 0 and isinstance(chunk.delta, Text):
        return chunk.delta.text
    return as_text(chunk.delta.value) if isinstance(chunk.delta, Result) else ""
