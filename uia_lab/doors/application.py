"""The mount without Jupyter: a plain tornado application, and the server that listens for it."""

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, RequestHandler

from uia_lab.access.credentials import bearer
from uia_lab.doors.base import MAX_BODY, Door, Timings
from uia_lab.doors.forms import KEPT_TYPE
from uia_lab.doors.open_doors import OpenDoors
from uia_lab.doors.routes import routes
from uia_lab.doors.standalone import expect_body, standalone_door

if TYPE_CHECKING:
    from uia_lab.unified_inference_service import UnifiedInferenceService

log = logging.getLogger(__name__)

MAX_HEADERS = 64 * 1024
# What a stranger can make this process hold before it is told to go.
STRANGERS_BODY = 64 * 1024
STOP_S = 5.0
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  # recognised here, never bound by default


class _Doors(Application):
    """Looks at requests when only their headers are there: of strangers' bodies little is read."""

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """The handler, with a request whose body tornado will not take for a form, and that comes in time."""
        expect_body(request, self.settings["uia_timings"].body_s)
        if _may_be_large(request):
            key = bearer(request.headers)
            if key is None or self.settings["uia_service"].keys.verify(key) is None:
                cast("HTTP1Connection", request.connection).set_max_body_size(STRANGERS_BODY)
        # Tornado would parse a form before it is known who sends it; a door that takes one does it later.
        request.headers.pop(KEPT_TYPE, None)
        if (content_type := request.headers.pop("Content-Type", None)) is not None:
            request.headers[KEPT_TYPE] = content_type
        return super().find_handler(request, **kwargs)


def _may_be_large(request: HTTPServerRequest) -> bool:
    """Whether more may come than is read of a stranger's body."""
    length = request.headers.get("Content-Length", "0")
    small = length.isdecimal() and len(length) < 12 and int(length) <= STRANGERS_BODY
    return not small or "Transfer-Encoding" in request.headers


def make_application(service: "UnifiedInferenceService", timings: Timings | None = None) -> Application:
    """The doors at the root, with nothing of Jupyter's.

    Args:
        service: What they open to.
        timings: How long they wait.
    """
    open_doors = OpenDoors()
    service.keys.on_end.append(open_doors.end_of)
    return _Doors(
        [(pattern, standalone_door(door)) for pattern, door in routes()],
        uia_service=service,
        uia_open_doors=open_doors,
        uia_timings=timings or Timings(),
        log_function=_log_request,
    )


class HttpServer:
    """Listens for a service.

    Args:
        service: What the doors open to.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        timings: How long the doors wait.
    """

    def __init__(
        self, service: "UnifiedInferenceService", host: str, port: int, timings: Timings | None = None
    ) -> None:
        self.host = host
        self.port = port
        self.application = make_application(service, timings)
        self._server: HTTPServer | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it; ends in a slash."""
        host = "127.0.0.1" if self.host in _EVERYWHERE else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def start(self) -> None:
        """Listens.

        Raises:
            OSError: The address cannot be listened at; the message names the setting.
        """
        if self._server is not None:
            return
        try:
            sockets = await asyncio.to_thread(_listening, self.host, self.port)
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise OSError(
                getattr(error, "errno", None) or 0,
                f"cannot listen at {self.host or '*'} port {self.port}: {why}. Set hf_server_port "
                "(HF_SERVER_PORT) to another port or to 0 for a free one, or hf_server_host.",
            ) from error
        self.port = sockets[0].getsockname()[1]
        timings: Timings = self.application.settings["uia_timings"]
        self._server = HTTPServer(
            self.application,
            # Beyond the doors' own limit, so that a body just above it gets a proper error.
            max_body_size=2 * MAX_BODY,
            max_header_size=MAX_HEADERS,
            idle_connection_timeout=timings.idle_s,
        )
        self._server.add_sockets(sockets)
        log.debug("listening at %s", self.url)

    async def stop(self) -> None:
        """Stops listening, ends running streams and sockets, and closes every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        server.stop()
        doors: OpenDoors = self.application.settings["uia_open_doors"]
        if not await doors.close(STOP_S):
            log.warning("%d answers did not end within %g s; their connections are cut", len(doors), STOP_S)
        try:
            async with asyncio.timeout(STOP_S):
                await server.close_all_connections()
        except TimeoutError:
            log.warning("some connections did not close within %g s", STOP_S)


def _listening(host: str, port: int) -> list[socket.socket]:
    """One socket for each address of the host, all with one port."""
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    bound: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            if bound:
                port = bound[0].getsockname()[1]
            try:
                bound.append(socket.create_server((address[0], port), family=family))
            except OSError as error:
                # A host with two addresses is fine with one where the machine lacks IPv6.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) or len(found) == 1:
                    raise
            else:
                bound[-1].setblocking(False)
        if not bound:
            raise OSError(errno.EADDRNOTAVAIL, "no address of this host can be listened at")
    except OSError:
        for item in bound:
            item.close()
        raise
    return bound


def _log_request(handler: RequestHandler) -> None:
    if not log.isEnabledFor(logging.DEBUG):
        return
    # The path without its query: a WebSocket's address may carry a key there.
    request_id = handler.request_id if isinstance(handler, Door) else ""
    log.debug(
        "%d %s %s %.1f ms %s",
        handler.get_status(),
        handler.request.method,
        handler.request.path,
        1000 * handler.request.request_time(),
        request_id,
    )
