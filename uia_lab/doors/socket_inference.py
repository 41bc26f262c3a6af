"""The inference half of a socket: many requests at once, each with a label of the client's choice."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from uia_lab.access.principals import ADMIN, Principal
from uia_lab.backends.websocket_worker import Send
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.websocket_answers import end_of, error_fields, piece_of, whole_of
from uia_lab.dialects.websocket_requests import MAX_ID, request_of
from uia_lab.domain.errors import BadRequest, Cancelled, InferenceError, QueueFull
from uia_lab.domain.events import Chunk, Event, Started
from uia_lab.domain.requests import InferenceRequest, new_request_id

if TYPE_CHECKING:
    from uia_lab.inference_backend_manager import BackendManager

log = logging.getLogger(__name__)

MOST = 1024
"""Requests under way on one socket."""


class SocketInference:
    """The requests of one socket. Each ends with exactly one message, save when the socket is closed.

    Args:
        manager: Where they go.
        principal: Who asks.
        send: Sends a message, and returns when the client has room for more.
        active: Called while inference goes on.
    """

    def __init__(
        self, manager: "BackendManager", principal: Principal, send: Send, active: Callable[[], None]
    ) -> None:
        self._manager = manager
        self._principal = principal
        self._send = send
        self._active = active
        self._requests: dict[str, tuple[InferenceRequest, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, body: Mapping[str, Any]) -> None:
        """Begins what an ``inference`` message asks for.

        Raises:
            BadRequest: A field is wrong, or the request_id is in use on this socket.
            QueueFull: Too many are under way on this socket.
        """
        request_id = new_request_id()
        label = _label(body) or request_id
        if label in self._requests:
            raise BadRequest(f"request_id {label!r} is in use on this socket", param="request_id")
        request = request_of(body, request_id, self._principal.name)
        if self._principal.via:
            request = msgspec.structs.replace(request, via=self._principal.via + request.via)
        # Tasks, not labels: one that has ended counts until its last message is sent.
        if len(self._tasks) >= MOST:
            raise QueueFull(f"{MOST} requests are under way on this socket already", retry_after=1.0)
        task = asyncio.create_task(self._run(label, request), name="uia-socket-request")
        self._requests[label] = request, task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self, body: Mapping[str, Any]) -> None:
        """Ends a request of this socket, or by the server's id one that belongs to the same principal.

        Raises:
            BadRequest: No such request is running, as far as this principal may know.
        """
        label = _label(body)
        if label is None:
            raise BadRequest("request_id is missing", param="request_id")
        if label in self._requests:
            request, task = self._requests[label]
            if not self._manager.cancel(request.id):
                # It has not begun yet, or is just ending.
                task.cancel()
                await self._end("inference_cancelled", label)
            return
        run = self._manager.running.get(label)
        mine = run is not None and (
            self._principal.allows(ADMIN) or run.request.principal == self._principal.name
        )
        if not mine or not self._manager.cancel(label):
            raise BadRequest(f"no request {label[:80]!r} is running", param="request_id")
        await self._send("inference_cancelled", request_id=label)

    async def close(self) -> None:
        """Cancels everything; done when it has ended."""
        for request, _ in self._requests.values():
            self._manager.cancel(request.id)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, label: str, request: InferenceRequest) -> None:
        choices = request.parameters.get("n") or 1
        answer = Answer(choices)
        try:
            async with self._manager.open(request) as events:
                async for event in events:
                    self._active()
                    if not (request.stream and isinstance(event, Chunk)):
                        answer.add(event)
                    await self._tell(label, request, event)
                    # A backend that never waits would otherwise keep the loop from everybody else.
                    await asyncio.sleep(0)
        except Cancelled:
            await self._end("inference_cancelled", label)
        except InferenceError as error:
            await self._end("inference_error", label, error=error.message, **error_fields(error))
        except Exception:
            log.exception("unexpected error in the answer of %s", request.id)
            text = f"an internal error, logged under {request.id}"
            await self._end("inference_error", label, error=text, code="internal_error")
        else:
            finished = answer.finished
            backends = {"backend": answer.backend_id}
            if request.stream:
                attempts = [
                    {"backend": item.backend_id, "outcome": item.outcome, "error": item.error}
                    for item in finished.attempts
                ]
                await self._end(
                    "inference_complete", label, **end_of(finished), **backends, attempts=attempts
                )
            else:
                asked = {"model": request.model, "task": request.task}
                await self._end("inference_result", label, **whole_of(answer), **asked, **backends)
        finally:
            if self._requests.get(label, (None,))[0] is request:
                del self._requests[label]

    async def _tell(self, label: str, request: InferenceRequest, event: Event) -> None:
        if isinstance(event, Started):
            await self._send(
                "inference_started",
                request_id=label,
                model=event.decision.get("model") or request.model,
                task=request.task,
                backend=event.backend_id,
                # Under this one it is found in GET /requests/{id}.
                id=request.id,
            )
        elif isinstance(event, Chunk) and request.stream:
            await self._send("inference_chunk", request_id=label, **piece_of(event))

    async def _end(self, name: str, label: str, **fields: Any) -> None:
        # Free before it is told, so that the client may use the label again at once.
        self._requests.pop(label, None)
        await self._send(name, request_id=label, **fields)


def _label(body: Mapping[str, Any]) -> str | None:
    return Fields(body).text("request_id", MAX_ID)
