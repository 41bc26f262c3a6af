"""``/ws/{client_id}``: inference, live topics and workers over a WebSocket."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from uia_lab._version import __version__
from uia_lab.access.principals import ADMIN, INFER, READ
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object, encode, kind
from uia_lab.dialects.websocket_answers import error_fields
from uia_lab.dialects.websocket_requests import MAX_ID
from uia_lab.domain.errors import (
    BadRequest,
    InferenceError,
    NoBackendAvailable,
    suggestion,
)
from uia_lab.doors.base import MAX_BODY, Door, log
from uia_lab.doors.feeds import Feeds
from uia_lab.doors.outflow import taken
from uia_lab.doors.socket_inference import SocketInference
from uia_lab.doors.socket_worker import WorkerSeat
from uia_lab.doors.updates import Updates
from uia_lab.manager.history import KEPT
from uia_lab.manager.topics import TOPICS

MAX_MESSAGE = MAX_BODY
CLOSE_S = 1.0
TOUCH_S = 5.0
NOT_KNOWN = 4401
"""Code of the close when the key of a connection is not valid any more."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message of a client.

    Args:
        type: Its type.
        body: All of it.
        size: Its bytes.
    """

    type: str
    body: dict[str, Any]
    size: int


class SocketDoor(Door, WebSocketHandler):
    """``GET /ws/{client_id}``: the WebSocket.

    The client's id is a label of its choice; the identity is the key's or Jupyter's.
    """

    scopes: ClassVar[tuple[str, ...]] = (READ, INFER)
    """To come in; each message then takes its own."""
    key_in_query: ClassVar[bool] = True
    _updates: Updates | None = None
    _inference: SocketInference | None = None
    _seat: WorkerSeat | None = None
    _client_id = ""
    _touched = 0.0
    _sent: "asyncio.Future[None] | None" = None
    _hung_up = False

    @property
    def max_message_size(self) -> int:
        """What tornado refuses by closing; we refuse smaller ones and stay open."""
        return 2 * MAX_MESSAGE

    @property
    def ping_interval(self) -> float:
        """Seconds between pings, which find out about clients that vanished."""
        return 30.0

    @property
    def ping_timeout(self) -> float:
        """Seconds to wait for a pong."""
        return 30.0

    @property
    def feeds(self) -> Feeds:
        """The live topics of this mount."""
        feeds: Feeds = self.settings.setdefault("uia_feeds", Feeds(self.manager.subscribe))
        return feeds

    def check_origin(self, origin: str) -> bool:
        """A key is never sent by a browser on its own, so with one any page may connect."""
        del origin
        return self.by_key

    async def prepare(self) -> None:
        """Finds out who asks, and whether the door is open at all."""
        await super().prepare()
        if not self.service.config.enable_websocket:
            raise HTTPError(404, "the WebSocket door is switched off (enable_websocket)")
        if self.open_doors.closing:
            raise HTTPError(503)

    async def open(self, client_id: str) -> None:
        """Greets the client."""
        self.open_doors.enter(self)
        self._turn = asyncio.Lock()
        self._client_id = client_id[:MAX_ID]
        self._updates = Updates(self.feeds, self._write)
        self._inference = SocketInference(self.manager, self.principal, self.send, self._active)
        self._seat = WorkerSeat(
            self.manager, self.send, self._beat, self.close, self._cut, self.timings.heartbeat_s
        )
        await self.send(
            "connection",
            status="connected",
            client_id=self._client_id,
            connection_id=uuid.uuid4().hex,
            instance_id=self.service.instance_id,
            version=__version__,
        )
        if self.open_doors.closing:
            # The mount has told its doors to end while this one was opening.
            self.hang_up()

    async def on_message(self, message: str | bytes) -> None:
        """Answers one message; the next one is read when this is done, so a flood holds itself back."""
        if self._hung_up:
            # Whoever has lost the right to be here has lost it at once, whether or not the close is answered.
            return
        request_id = None
        try:
            if self._seat is not None:
                self._seat.heard()
            if len(message) > MAX_MESSAGE:
                raise BadRequest(f"the message is larger than {MAX_MESSAGE // 2**20} MiB")
            raw = message.encode() if isinstance(message, str) else message
            if len(raw) > MAX_MESSAGE:
                raise BadRequest(f"the message is larger than {MAX_MESSAGE // 2**20} MiB")
            body = decode_object(raw)
            request_id = body.get("request_id") if isinstance(body.get("request_id"), str) else None
            name = body.get("type")
            if not isinstance(name, str) or name not in MESSAGES:
                known = suggestion(name[:40] if isinstance(name, str) else "", MESSAGES)
                await self._error(f"unknown type {kind(name)}.{known}", "unknown_message", request_id)
                return
            scope = MESSAGES[name].scope
            if scope is not None:
                self.principal.require(scope)
            await MESSAGES[name].handler(self, Incoming(name, body, len(raw)))
        except InferenceError as error:
            more = error_fields(error)
            await self._error(error.message, more.pop("code"), request_id, **more)
        except Exception:  # noqa: BLE001 - logged, and one bad message must not cost the connection
            log.exception("unexpected error on socket %s", self.request_id)
            text = f"an internal error, logged under {self.request_id}"
            await self._error(text, "internal_error", request_id)

    def on_pong(self, data: bytes) -> None:
        """The client is there."""
        del data
        if self._seat is not None:
            self._seat.heard()

    async def subscribe(self, message: Incoming) -> None:
        """``subscribe {topics}``: a snapshot of each topic, then its changes."""
        topics = _topics(message.body)
        await self.send("subscribed", topics=topics)
        if self._updates is not None:
            self._updates.add(topics)

    async def unsubscribe(self, message: Incoming) -> None:
        """``unsubscribe {topics}``: no more of these topics."""
        topics = _topics(message.body)
        if self._updates is not None:
            self._updates.remove(topics)
        await self.send("unsubscribed", topics=topics)

    async def inference(self, message: Incoming) -> None:
        """Runs a request, beside the others of this socket.

        ``inference {request_id?, task?, model?, inputs, parameters?, stream?, routing?}``.
        """
        if self.open_doors.closing:
            raise NoBackendAvailable("the server is stopping", retry_after=5)
        if self._inference is not None:
            self._inference.start(message.body)

    async def cancel(self, message: Incoming) -> None:
        """``cancel {request_id}``: ends a request."""
        if self._inference is not None:
            await self._inference.cancel(message.body)

    async def status(self, message: Incoming) -> None:
        """``status {details?}``: the status report, with or without its backends."""
        level = message.body.get("details", "summary")
        if level not in ("summary", "full"):
            raise BadRequest(f"details must be summary or full, not {kind(level)}", param="details")
        report = self.manager.get_backend_status_report()
        if level == "summary":
            del report["backends"]
        await self.send("status", detail_level=level, backend_status=report)

    async def history(self, message: Incoming) -> None:
        """``history {after?, limit?}``: the samples of the last quarter of an hour, or those after one."""
        fields = Fields(message.body)
        after, limit = fields.whole("after", 0) or 0, fields.whole("limit", 1)
        await self.send("history", **self.service.history.read(after, KEPT if limit is None else limit))

    async def answer_ping(self, message: Incoming) -> None:
        """``ping``: is answered by `pong`."""
        del message
        await self.send("pong")

    async def register(self, message: Incoming) -> None:
        """``register {backend}``: the socket becomes a backend."""
        if self._seat is not None:
            metadata = {"principal": self.principal.name, "client_id": self._client_id}
            await self._seat.register(message.body, metadata)

    async def work(self, message: Incoming) -> None:
        """A worker's answer to an ``execute``.

        One of ``result {request_id, result, usage?}``, ``chunk {request_id, chunk}``,
        ``complete {request_id, usage?, finish_reason?}``, ``fail {request_id, error, code?}``.
        """
        if self._seat is not None:
            await self._seat.answer(message.type, message.body, message.size)

    async def send(self, name: str, /, **fields: Any) -> None:
        """Sends one message and waits until the client has room for more; a closed one is no error."""
        await self._write(encode({"type": name, "timestamp": time.time(), **fields}))

    async def _write(self, message: bytes) -> None:
        """One message at a time, so that what waits for a slow client waits where it was made.

        A client that takes nothing for ``stalled_s`` seconds is dropped.
        """
        async with self._turn:
            # A sender that has left meanwhile may have left most of its message behind.
            await self._taken()
            with contextlib.suppress(WebSocketClosedError):
                self._sent = self.write_message(message)
                self._sent.add_done_callback(_looked_at)
                await self._taken()

    async def _taken(self) -> None:
        """Waits until the client has taken all that was written."""
        stream = getattr(self.ws_connection, "stream", None)
        if self._sent is None or stream is None or not stream.writing():
            # All of it is with the kernel, or the connection is closed.
            return
        if not await taken(self._sent, stream, self.timings.stalled_s):
            log.info("%s: the client has not read for %g s", self.request_id, self.timings.stalled_s)
            self._cut()

    async def _error(self, message: str, code: str, request_id: str | None, **more: Any) -> None:
        fields = {} if request_id is None else {"request_id": request_id[:MAX_ID]}
        await self.send("error", message=message, code=code, **fields, **more)

    def _active(self) -> None:
        now = time.monotonic()
        if now - self._touched > TOUCH_S:
            self._touched = now
            self.touch()

    def _beat(self) -> None:
        try:
            self.ping(b"")
        except WebSocketClosedError:
            return

    def _cut(self) -> None:
        self.on_connection_close()

    def hang_up(self) -> None:
        """Says why, and closes; a client that does not answer is cut off."""
        self._hung_up = True
        if self.open_doors.closing:
            self.close(1001, "the server is stopping")
        else:
            self.close(NOT_KNOWN, "the key was revoked or has expired")
        asyncio.get_running_loop().call_later(CLOSE_S, self.on_connection_close)

    def on_close(self) -> None:
        """Ends everything of this connection; the mount waits for that when it stops."""
        ending = asyncio.ensure_future(self._end())
        ending.add_done_callback(lambda _: self.open_doors.leave(self))

    async def _end(self) -> None:
        updates, self._updates = self._updates, None
        inference, self._inference = self._inference, None
        seat, self._seat = self._seat, None
        await asyncio.gather(
            *([inference.close()] if inference is not None else []),
            *([seat.leave(self.close_code)] if seat is not None else []),
            *([updates.close()] if updates is not None else []),
            return_exceptions=True,
        )


class Message(NamedTuple):
    """A type of message that clients send.

    Args:
        handler: What is done with it.
        scope: The scope it takes; None where any identity will do.
    """

    handler: Callable[[SocketDoor, Incoming], Awaitable[None]]
    scope: str | None


MESSAGES: Mapping[str, Message] = MappingProxyType(
    {
        "subscribe": Message(SocketDoor.subscribe, READ),
        "unsubscribe": Message(SocketDoor.unsubscribe, READ),
        "status": Message(SocketDoor.status, READ),
        "history": Message(SocketDoor.history, READ),
        "inference": Message(SocketDoor.inference, INFER),
        "cancel": Message(SocketDoor.cancel, INFER),
        "ping": Message(SocketDoor.answer_ping, None),
        "register": Message(SocketDoor.register, ADMIN),
        "result": Message(SocketDoor.work, ADMIN),
        "chunk": Message(SocketDoor.work, ADMIN),
        "complete": Message(SocketDoor.work, ADMIN),
        "fail": Message(SocketDoor.work, ADMIN),
    }
)


def _looked_at(sent: "asyncio.Future[None]") -> None:
    """A write whose client is gone is no error, whether or not somebody waits for it."""
    if not sent.cancelled():
        sent.exception()


def _topics(body: dict[str, Any]) -> list[str]:
    topics = body.get("topics")
    if not isinstance(topics, list) or not topics or not all(isinstance(item, str) for item in topics):
        raise BadRequest(f"topics must be a list out of {', '.join(TOPICS)}", param="topics")
    for topic in topics:
        if topic not in TOPICS:
            raise BadRequest(f"unknown topic {topic[:40]!r}.{suggestion(topic[:40], TOPICS)}", param="topics")
    return list(dict.fromkeys(topics))
