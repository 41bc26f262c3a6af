"""``/ws/{client_id}``: live status over a WebSocket."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from uia_lab._version import __version__
from uia_lab.dialects.json_body import decode_object, encode, kind
from uia_lab.domain.errors import BadRequest, InferenceError, suggestion
from uia_lab.doors.base import Door, log
from uia_lab.doors.updates import Updates
from uia_lab.manager.topics import TOPICS

MAX_MESSAGE = 4 * 1024 * 1024
CLOSE_S = 1.0
# These come with a later protocol step; saying so is better than calling them unknown.
ANNOUNCED = frozenset({"inference", "cancel", "register", "result", "chunk", "complete", "fail"})


class SocketDoor(Door, WebSocketHandler):
    """One connection. The client's id is a label of its choice; the identity is the key's or Jupyter's."""

    key_in_query: ClassVar[bool] = True
    _updates: Updates | None = None

    @property
    def max_message_size(self) -> int:
        """What tornado refuses by closing; we refuse far smaller ones and stay open."""
        return 4 * MAX_MESSAGE

    @property
    def ping_interval(self) -> float:
        """Seconds between pings, which find out about clients that vanished."""
        return 30.0

    @property
    def ping_timeout(self) -> float:
        """Seconds to wait for a pong."""
        return 30.0

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
        self._updates = Updates(self.manager.subscribe, self._send)
        await self._send(
            "connection",
            status="connected",
            client_id=client_id,
            connection_id=uuid.uuid4().hex,
            instance_id=self.service.instance_id,
            version=__version__,
        )

    async def on_message(self, message: str | bytes) -> None:
        """Answers one message; the next one is read when this is sent, so a flood holds itself back."""
        handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "status": self._status,
            "ping": self._ping,
        }
        request_id = None
        try:
            if len(message) > MAX_MESSAGE:
                raise BadRequest(f"the message is larger than {MAX_MESSAGE // 2**20} MiB")
            body = decode_object(message.encode() if isinstance(message, str) else message)
            request_id = body.get("request_id") if isinstance(body.get("request_id"), str) else None
            name = body.get("type")
            if isinstance(name, str) and name in ANNOUNCED:
                text = f"{name!r} is not available on this socket yet; use the REST doors"
                await self._error(text, "unsupported_message", request_id)
                return
            if not isinstance(name, str) or name not in handlers:
                known = suggestion(name[:40] if isinstance(name, str) else "", handlers)
                await self._error(f"unknown type {kind(name)}.{known}", "unknown_message", request_id)
                return
            await handlers[name](body)
        except InferenceError as error:
            await self._error(error.message, error.code, request_id)
        except Exception:  # noqa: BLE001 - logged, and one bad message must not cost the connection
            log.exception("unexpected error on socket %s", self.request_id)
            text = f"an internal error, logged under {self.request_id}"
            await self._error(text, "internal_error", request_id)

    async def _subscribe(self, body: dict[str, Any]) -> None:
        topics = _topics(body)
        await self._send("subscribed", topics=topics)
        if self._updates is not None:
            self._updates.add(topics)

    async def _unsubscribe(self, body: dict[str, Any]) -> None:
        topics = _topics(body)
        if self._updates is not None:
            self._updates.remove(topics)
        await self._send("unsubscribed", topics=topics)

    async def _status(self, body: dict[str, Any]) -> None:
        level = body.get("details", "summary")
        if level not in ("summary", "full"):
            raise BadRequest(f"details must be summary or full, not {kind(level)}", param="details")
        report = self.manager.get_backend_status_report()
        if level == "summary":
            del report["backends"]
        await self._send("status", detail_level=level, backend_status=report)

    async def _ping(self, body: dict[str, Any]) -> None:
        del body
        await self._send("pong")

    async def _error(self, message: str, code: str, request_id: str | None) -> None:
        fields = {} if request_id is None else {"request_id": request_id[:256]}
        await self._send("error", message=message, code=code, **fields)

    async def _send(self, name: str, /, **fields: Any) -> None:
        """Sends one message and waits until the client has room for more.

        A client that does not read for ``stalled_s`` seconds is dropped.
        """
        message = encode({"type": name, "timestamp": time.time(), **fields})
        try:
            async with asyncio.timeout(self.timings.stalled_s):
                await self.write_message(message)
        except TimeoutError:
            log.info("%s: the client has not read for %g s", self.request_id, self.timings.stalled_s)
            self.on_connection_close()
        except WebSocketClosedError:
            return

    def hang_up(self) -> None:
        """Says that the server stops, and closes; a client that does not answer is cut off."""
        self.close(1001, "the server is stopping")
        asyncio.get_running_loop().call_later(CLOSE_S, self.on_connection_close)

    def on_close(self) -> None:
        """Ends the subscriptions; the mount waits for that when it stops."""
        updates, self._updates = self._updates, None
        if updates is None:
            self.open_doors.leave(self)
        else:
            updates.close().add_done_callback(lambda _: self.open_doors.leave(self))


def _topics(body: dict[str, Any]) -> list[str]:
    topics = body.get("topics")
    if not isinstance(topics, list) or not topics or not all(isinstance(item, str) for item in topics):
        raise BadRequest(f"topics must be a list out of {', '.join(TOPICS)}", param="topics")
    for topic in topics:
        if topic not in TOPICS:
            raise BadRequest(f"unknown topic {topic[:40]!r}.{suggestion(topic[:40], TOPICS)}", param="topics")
    return list(dict.fromkeys(topics))
