"""Runs an ASGI application as the answer of a tornado handler."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from uia_lab.doors.forms import KEPT_TYPE
from uia_lab.doors.outflow import taken

log = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
# The door has looked at these; an application and its logs have no use for them.
_SECRET = frozenset({"authorization", "cookie", "x-api-key", "x-xsrftoken"})


class Exchange:
    """One request and its answer, between a handler and an application.

    The body has come as a whole. What the application sends goes out piece by piece, each when the client
    has taken the last.

    Args:
        handler: Whose request it is; it must not have begun to answer.
        stalled_s: Seconds after which a client that takes nothing counts as gone.
    """

    def __init__(self, handler: RequestHandler, stalled_s: float = 30.0) -> None:
        self._handler = handler
        self._stalled_s = stalled_s
        self._gone = asyncio.Event()
        self._body: bytes | None = handler.request.body

    def leave(self) -> None:
        """The client is gone, or has to go: the application is told of a disconnect."""
        self._gone.set()

    async def run(self, application: Application, **scope: Any) -> None:
        """Runs the application to its end.

        Args:
            application: The application.
            **scope: What its scope has beyond the request.
        """
        try:
            await application(self._scope() | scope, self._receive, self._send)
        except Exception:
            stream = getattr(self._handler.request.connection, "stream", None)
            if not self._gone.is_set() and stream is not None and not stream.closed():
                raise
            # What breaks in an application whose client has left is of no consequence.
            log.debug("after a disconnect", exc_info=True)
        if self._gone.is_set() and not self._handler._headers_written:  # noqa: SLF001 - it has no other name
            # It was not the client that left: there is somebody to be told.
            self._handler.set_status(503)

    def _scope(self) -> dict[str, Any]:
        request = self._handler.request
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.version.partition("/")[2],
            "method": request.method,
            "scheme": request.protocol,
            "path": request.path,
            "raw_path": request.path.encode("latin-1", "replace"),
            # Never the query: a key may stand in it.
            "query_string": b"",
            "root_path": "",
            "headers": _headers(request.headers.get_all(), _SECRET),
            "client": (request.remote_ip, 0),
            "server": None,
        }

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            raise OSError("the client is gone")
        handler = self._handler
        if message["type"] == "http.response.start":
            handler.set_status(message["status"])
            handler.clear_header("Content-Type")
            for name, value in message["headers"]:
                # How long a body is, and when its connection ends, tornado sees itself.
                if name.lower() not in (b"content-length", b"connection", b"transfer-encoding"):
                    handler.set_header(name.decode("latin-1"), value.decode("latin-1"))
        elif message["type"] == "http.response.body":
            if message.get("body"):
                handler.write(message["body"])
            if message.get("more_body"):
                await self._flush()
            else:
                handler.finish()

    async def _flush(self) -> None:
        stream = getattr(self._handler.request.connection, "stream", None)
        if not self._handler._headers_written and stream is not None and not stream.closed():  # noqa: SLF001
            stream.set_nodelay(True)
        sent = self._handler.flush()
        # The error of one that nobody waits for any more is no news.
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())
        if stream is not None and not sent.done() and not await taken(sent, stream, self._stalled_s):
            stream.close()
            self._gone.set()
            raise OSError("the client does not read")
        try:
            await sent
        except StreamClosedError:
            self._gone.set()
            raise OSError("the client is gone") from None


def _headers(found: Any, without: Collection[str]) -> list[tuple[bytes, bytes]]:
    names = {KEPT_TYPE.lower(): "content-type"}
    lowered = ((names.get(name.lower(), name.lower()), value) for name, value in found)
    return [
        (name.encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in lowered
        if name not in without
    ]
