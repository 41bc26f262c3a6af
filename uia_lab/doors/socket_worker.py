"""The worker half of a socket: a client that registers becomes a backend."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from uia_lab.backends.websocket_worker import Send, WebSocketWorker
from uia_lab.dialects.websocket_requests import LEAVING, REPLACED, registration_of
from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest, InferenceError

if TYPE_CHECKING:
    from uia_lab.inference_backend_manager import BackendManager

log = logging.getLogger(__name__)

MISSED_BEATS = 3
# A worker that lost its connection comes back within this, or is forgotten.
FORGET_S = 60.0


class WorkerSeat:
    """Makes a socket a backend, keeps an eye on it, and takes it out when it is gone.

    Args:
        manager: Where it is registered.
        send: Sends a message.
        ping: Sends a ping of the WebSocket protocol.
        close: Closes the connection with a code and a reason.
        cut: Ends a connection that does not answer.
        heartbeat_s: Seconds between pings; three that go unanswered mean that the worker is gone.
    """

    def __init__(
        self,
        manager: "BackendManager",
        send: Send,
        ping: Callable[[], None],
        close: Callable[[int, str], None],
        cut: Callable[[], None],
        heartbeat_s: float,
    ) -> None:
        self._manager = manager
        self._send = send
        self._ping = ping
        self._close = close
        self._cut = cut
        self._heartbeat_s = heartbeat_s
        self._heard = time.monotonic()
        self._worker: WebSocketWorker | None = None
        self._beat: asyncio.Task[None] | None = None

    def heard(self) -> None:
        """Something came from the client."""
        self._heard = time.monotonic()

    async def register(self, body: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Makes the socket the backend that a message describes.

        Args:
            body: The ``register`` message.
            metadata: Facts for the registration.

        Raises:
            BadRequest: A field is wrong, or the id is somebody else's.
        """
        wanted = registration_of(body)
        own = self._worker
        if own is not None and own.registration.id != wanted.id:
            raise BadRequest(
                f"this socket is backend {own.registration.id!r} already; open another one for {wanted.id!r}",
                param="backend.id",
            )
        there = self._manager.get_backend(wanted.id)
        if there is not None and not isinstance(there.instance, WebSocketWorker):
            raise BadRequest(
                f"the id {wanted.id!r} is that of a {there.type.value} backend; choose another one",
                param="backend.id",
            )
        worker = WebSocketWorker(wanted, self._send, self._taken_out)
        self._manager.register_backend(
            wanted.id,
            BackendType.WEBSOCKET,
            wanted.name,
            worker,
            metadata=metadata,
            max_concurrency=wanted.max_concurrency,
        )
        self._worker = worker
        await self._manager.probe(wanted.id)
        # The connection may have closed while the worker was looked at.
        if self._beat is None and self._worker is worker:
            self._beat = asyncio.create_task(self._watch(), name="uia-worker-heartbeat")
        await self._send("registered", backend_id=wanted.id)

    async def answer(self, name: str, body: Mapping[str, Any], size: int) -> None:
        """Takes in a worker's answer to an ``execute``.

        Raises:
            BadRequest: The socket is no backend, or it was not given that request.
        """
        if self._worker is None:
            raise BadRequest(f"{name} is a worker's answer; register this socket as a backend first")
        request_id = body.get("request_id")
        if not isinstance(request_id, str) or not request_id:
            raise BadRequest(f"{name} needs the request_id of an execute", param="request_id")
        if not await self._worker.answer(name, request_id, body, size):
            raise BadRequest(f"no request {request_id[:80]!r} was given to this worker", param="request_id")

    async def leave(self, code: int | None) -> None:
        """The connection is closed: OFFLINE at once, and out of the list where it said that it leaves.

        Args:
            code: Code of the close, if there was one.
        """
        beat, self._beat = self._beat, None
        if beat is not None:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.disconnect("the worker's connection is closed")
        backend_id = worker.registration.id
        if not self._is_registered(worker):
            return
        if code == LEAVING:
            self._manager.unregister_backend(backend_id)
            return
        worker.forget_after(FORGET_S, lambda: self._forget(worker))
        with contextlib.suppress(InferenceError):
            await self._manager.probe(backend_id)

    def _is_registered(self, worker: WebSocketWorker) -> bool:
        there = self._manager.get_backend(worker.registration.id)
        return there is not None and there.instance is worker

    def _forget(self, worker: WebSocketWorker) -> None:
        if self._is_registered(worker):
            self._manager.unregister_backend(worker.registration.id)

    def _taken_out(self, worker: WebSocketWorker) -> None:
        # One that this socket has registered anew is not the socket's backend any more.
        if worker is self._worker:
            self._worker = None
            self._close(REPLACED, "the backend was taken out, or registered by another connection")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if time.monotonic() - self._heard > MISSED_BEATS * self._heartbeat_s:
                log.info("a worker has missed %d heartbeats; its connection is cut", MISSED_BEATS)
                self._beat = None
                self._cut()
                return
            self._ping()
