"""A worker that registered on our socket, as a backend."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from uia_lab.backends.inboxes import Inboxes
from uia_lab.dialects.websocket_answers import AnswerReader
from uia_lab.dialects.websocket_requests import Registration, execute_fields
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Event, Finished, Started
from uia_lab.domain.requests import InferenceRequest


class Send(Protocol):
    """Sends one message of the given type, and is done when the other side has room for more."""

    async def __call__(self, name: str, /, **fields: Any) -> None:
        """Sends it; a closed connection is no error."""


class WebSocketWorker:
    """Gives requests to a worker with ``execute`` and takes ``chunk``, ``complete``, ``result``, ``fail``.

    Belongs to the loop of the socket.

    Args:
        registration: What the worker said of itself.
        send: Sends a message to it.
        taken_out: Called when it is no backend any more: replaced, or unregistered.
    """

    def __init__(
        self, registration: Registration, send: Send, taken_out: Callable[["WebSocketWorker"], None]
    ) -> None:
        self.registration = registration
        self.capabilities = BackendCapabilities(
            supported_tasks=frozenset(registration.tasks),
            supported_models=frozenset(registration.models),
            supports_streaming=registration.streaming,
            protocols=frozenset({"websocket"}),
            external=False,
        )
        self._taken_out = taken_out
        self._send = send
        self._inboxes = Inboxes(self._abort)
        self._numbers = itertools.count(1)
        self._gone: str | None = None
        self._forget: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Requests it works on."""
        return len(self._inboxes)

    async def start(self) -> None:
        """Nothing to get ready: the connection is there."""

    async def stop(self) -> None:
        """It was replaced or taken out: running answers end with an error."""
        self.disconnect("the worker was replaced or taken out")
        if self._forget is not None:
            self._forget.cancel()
        self._taken_out(self)

    async def probe(self) -> Probe:
        """Whether the connection is there; its heartbeat is the socket's."""
        if self._gone is not None:
            return Probe(BackendStatus.OFFLINE, self._gone)
        return Probe(BackendStatus.HEALTHY, "connected", load=len(self._inboxes))

    async def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """The worker's answer."""
        if self._gone is not None:
            raise BackendFailed(self._gone)
        # Its own id for each attempt: what is late for one must not get into the next.
        request_id = f"{request.id}.{next(self._numbers)}"
        inbox = self._inboxes.open(request_id)
        reader = AnswerReader()
        answered = False
        try:
            await self._send("execute", request_id=request_id, **execute_fields(request))
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

    async def answer(self, name: str, request_id: str, body: Mapping[str, Any], size: int) -> bool:
        """Takes in a message of the worker; False when it is for no request of its own.

        Args:
            name: ``chunk``, ``complete``, ``result`` or ``fail``.
            request_id: The request it is for.
            body: The message.
            size: Its bytes.
        """
        return await self._inboxes.put(request_id, (name, body), size) or self._inboxes.ended(request_id)

    def disconnect(self, reason: str) -> None:
        """The worker is gone: running answers break off, and go on elsewhere where that is possible."""
        if self._gone is None:
            self._gone = reason
            self._inboxes.fail(BackendFailed(reason))

    async def _abort(self, request_id: str) -> None:
        await self._send("abort", request_id=request_id)

    def forget_after(self, seconds: float, forget: Callable[[], None]) -> None:
        """Calls back when it has not come back for so long; being stopped calls that off."""
        self._forget = asyncio.get_running_loop().call_later(seconds, forget)
