"""A WebSocket endpoint elsewhere as a backend: one connection, many requests."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Protocol

from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secret
from uia_lab.backends.inboxes import Inboxes
from uia_lab.backends.socket_link import SocketLink
from uia_lab.backends.socket_report import SocketReport, report_of
from uia_lab.dialects.websocket_answers import AnswerReader, error_of
from uia_lab.dialects.websocket_requests import fields_of
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.domain.events import Event, Finished, Started
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION

_ANSWERS = frozenset({"chunk", "complete", "result"})
_STATUS = "status"
"""What our question for the server's status is called; no request has that id."""


class Shape(Protocol):
    """How a kind of endpoint words requests and answers; it does no I/O and keeps nothing."""

    def ask(self, request: InferenceRequest, request_id: str, via: tuple[str, ...]) -> Mapping[str, Any]:
        """The message that asks for an answer, with its ``type``."""

    def stop(self, request_id: str) -> Mapping[str, Any]:
        """The message that ends a request."""

    def read(self, message: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]] | None:
        """The request a message is for, what it is (as AnswerReader names it), and its fields; or None."""


class UiaShape:
    """The messages of our own ``/ws``."""

    _NAMES: Mapping[str, str] = {
        "inference_chunk": "chunk",
        "inference_complete": "complete",
        "inference_result": "result",
        "inference_error": "error",
        "inference_cancelled": "error",
        "error": "error",
    }

    def ask(self, request: InferenceRequest, request_id: str, via: tuple[str, ...]) -> Mapping[str, Any]:
        """An ``inference`` message."""
        return {"type": "inference", "request_id": request_id, **fields_of(request, via)}

    def stop(self, request_id: str) -> Mapping[str, Any]:
        """A ``cancel`` message."""
        return {"type": "cancel", "request_id": request_id}

    def read(self, message: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]] | None:
        """The part of an answer that a message is."""
        name = self._NAMES.get(str(message.get("type")))
        request_id = message.get("request_id")
        if name is None or not isinstance(request_id, str):
            return None
        if message.get("type") == "inference_cancelled":
            return request_id, name, {"code": "backend_failed", "message": "it was cancelled there"}
        return request_id, name, message


class WebSocketBackend:
    """Sends requests to a WebSocket elsewhere, for example the ``/ws`` of another uia_lab.

    It connects in the background and again whenever the connection is lost. Belongs to the loop of
    :meth:`start`.

    Args:
        endpoint: Where the server is: ``ws://host:port/ws``, or its plain address.
        key: Finds the key of that server; called off the loop. None where it has none.
        instance_id: Id of this instance, which goes along so that no request runs in circles.
        models: Models it is asked for; those the server lists when absent.
        tasks: Tasks it is asked for; those the server lists when absent.
        policy: Which addresses may be called.
        shape: How the endpoint words its messages.

    Attributes:
        keyed: Whether it is called with somebody's key.

    Raises:
        BadRequest: The endpoint is no address of a server.
        NotAllowed: It is one that may not be called.
    """

    def __init__(
        self,
        endpoint: str,
        key: Callable[[], Secret | None] | None = None,
        *,
        instance_id: str = "",
        models: Iterable[str] | None = None,
        tasks: Iterable[str] | None = None,
        policy: EndpointPolicy | None = None,
        shape: Shape | None = None,
    ) -> None:
        self._instance_id = instance_id or f"uia-{uuid.uuid4().hex[:12]}"
        self._models = frozenset(models) if models is not None else None
        self._tasks = frozenset(tasks) if tasks is not None else None
        self._shape: Shape = shape or UiaShape()
        self._link = SocketLink(
            endpoint,
            self._instance_id,
            key or (lambda: None),
            opened=self._opened,
            receive=self._receive,
            lost=self._lost,
            policy=policy,
        )
        self.endpoint = self._link.endpoint
        self.keyed = key is not None
        self._inboxes = Inboxes(self._stop_there)
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._asking = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<WebSocketBackend {self.endpoint}>"

    @property
    def capabilities(self) -> BackendCapabilities:
        """What it is asked for, before the server has told."""
        return BackendCapabilities(
            supported_tasks=self._tasks or {TEXT_GENERATION, TEXT_EMBEDDING},
            supported_models=self._models or frozenset(),
            supports_streaming=True,
            protocols={"websocket"},
        )

    async def start(self) -> None:
        """Begins to connect."""
        if self._task is None:
            self._tried.clear()
            self._task = asyncio.create_task(self._link.run(), name=f"uia-socket-{self.endpoint}")

    async def stop(self) -> None:
        """Closes the connection; running answers end with an error."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._lost(BackendFailed(f"the connection to {self.endpoint} was closed here"))

    async def probe(self) -> Probe:
        """Asks the server for its status; one that may not be read is only known to be there."""
        if self._link.trouble is not None:
            # Whoever looks is answered by a fresh attempt, not by what the last one found.
            self._tried.clear()
            self._link.hurry()
            await self._tried.wait()
        if self._link.trouble is not None:
            return Probe(BackendStatus.OFFLINE, self._link.trouble.message)
        if not isinstance(self._shape, UiaShape):
            return Probe(BackendStatus.HEALTHY, "connected")
        try:
            report = await self._status()
        except InferenceError as error:
            return Probe(BackendStatus.HEALTHY, f"connected; its status cannot be read: {error.message}")
        if not report.serves:
            return Probe(BackendStatus.UNHEALTHY, "connected, but no backend there can serve")
        models = self._models or report.models
        capabilities = BackendCapabilities(
            supported_tasks=self._tasks or report.tasks,
            supported_models=models,
            supports_streaming=True,
            protocols={"websocket"},
        )
        reason = f"connected to {self._link.cleaned(report.instance_id) or 'a server without a name'}"
        return Probe(BackendStatus.HEALTHY, reason, models, capabilities, load=report.load)

    async def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """The server's answer."""
        if self._link.trouble is not None:
            # Just started, it may be connecting still; how long that may take is the manager's to say.
            await self._tried.wait()
        if self._link.trouble is not None:
            self._link.hurry()
            raise self._link.broken()
        request_id = f"{request.id}.{next(self._numbers)}"
        inbox = self._inboxes.open(request_id)
        reader = AnswerReader()
        answered = False
        try:
            await self._send(self._shape.ask(request, request_id, (*request.via, self._instance_id)))
            yield Started("")
            while not answered:
                name, body = await inbox.get()
                answered = name != "chunk"
                for event in reader.feed(name, body):
                    yield event
                    if isinstance(event, Finished):
                        return
        finally:
            self._inboxes.close(request_id, answered=answered)

    async def _stop_there(self, request_id: str) -> None:
        await self._send(self._shape.stop(request_id))

    async def _send(self, message: Mapping[str, Any]) -> None:
        fields = dict(message)
        await self._link.send(str(fields.pop("type")), **fields)

    async def _status(self) -> SocketReport:
        async with self._asking:
            # An inbox like the others: a full one beside it must not keep the report from coming.
            inbox = self._inboxes.open(_STATUS)
            try:
                await self._link.send("status", details="full", request_id=_STATUS)
                name, message = await inbox.get()
            finally:
                self._inboxes.close(_STATUS, answered=True)
            if name != "status":
                raise error_of(message)
            return report_of(message)

    async def _opened(self, greeting: Mapping[str, Any]) -> None:
        if greeting.get("instance_id") == self._instance_id:
            raise BackendFailed(f"{self.endpoint} leads back to this very instance")
        self._tried.set()

    async def _receive(self, message: dict[str, Any], size: int) -> None:
        if message.get("type") == "status":
            await self._inboxes.put(_STATUS, ("status", message), size)
            return
        part = self._shape.read(message)
        if part is not None:
            request_id, name, body = part
            if name not in _ANSWERS:
                # Now, while the key is the one that this connection was opened with.
                body = {
                    field: self._link.cleaned(value) if isinstance(value, str) else value
                    for field, value in body.items()
                }
            await self._inboxes.put(request_id, (name, body), size)

    def _lost(self, error: InferenceError) -> None:
        self._inboxes.fail(BackendFailed(error.message))
        self._tried.set()
