"""What every door does: identity, body, errors, and a clean end."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from uia_lab.access.credentials import bearer
from uia_lab.access.principals import READ, Principal
from uia_lab.dialects.json_body import decode_object, encode
from uia_lab.dialects.openai_errors import envelope
from uia_lab.domain.errors import InferenceError, Unauthenticated
from uia_lab.domain.requests import new_request_id

if TYPE_CHECKING:
    from uia_lab.doors.open_doors import OpenDoors
    from uia_lab.inference_backend_manager import BackendManager
    from uia_lab.unified_inference_service import UnifiedInferenceService

log = logging.getLogger(__name__)

MAX_BODY = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timings:
    """How long doors wait, in seconds.

    Args:
        hold_s: For the first content of a stream before its headers are sent all the same.
        waiting_s: Between two comments that keep a silent stream open.
        stalled_s: For a client that does not read before it is dropped.
        heartbeat_s: Between two pings of a worker; three unanswered mean that it is gone.
        body_s: For the whole body of a request.
        idle_s: For the next request on a connection, and for its headers.
    """

    hold_s: float = 5.0
    waiting_s: float = 10.0
    stalled_s: float = 30.0
    heartbeat_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What a client is told of an error.

    Args:
        status: HTTP status.
        message: What happened and what to do.
        code: Stable machine-readable name.
        param: Field at fault.
    """

    status: int
    message: str
    code: str
    param: str | None = None


class Door(RequestHandler):
    """Base of the doors: who comes in is known before anything else is looked at.

    A mount (standalone or Jupyter) mixes in :meth:`identify`, the identities it knows besides our keys.
    """

    scopes: ClassVar[tuple[str, ...]] = (READ,)
    """Scopes of which it takes one to come in; the door is open to everybody where there is none."""
    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Scopes of methods that take others."""
    key_in_query: ClassVar[bool] = False
    """Whether ``?token=`` is read, for clients that cannot set headers."""
    max_body: ClassVar[int] = MAX_BODY
    """Bytes a body may have."""

    request_id: str = ""
    principal: Principal
    by_key = False
    """Whether the identity came by one of our keys, which no browser sends on its own."""

    @property
    def service(self) -> "UnifiedInferenceService":
        """The service this door belongs to."""
        service: UnifiedInferenceService = self.settings["uia_service"]
        return service

    @property
    def manager(self) -> "BackendManager":
        """The manager requests go to."""
        return self.service.get_backend_manager()

    @property
    def open_doors(self) -> "OpenDoors":
        """Everything of this mount that is under way."""
        doors: OpenDoors = self.settings["uia_open_doors"]
        return doors

    @property
    def timings(self) -> Timings:
        """How long this mount waits."""
        timings: Timings = self.settings.get("uia_timings") or Timings()
        return timings

    def set_default_headers(self) -> None:
        """Headers of every answer, errors included."""
        super().set_default_headers()
        self.request_id = self.request_id or new_request_id()
        self.clear_header("Server")
        self.set_header("x-request-id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", "application/json")

    def needed_scopes(self) -> tuple[str, ...]:
        """The scopes of which this request takes one."""
        return self.method_scopes.get(self.request.method or "", self.scopes)

    async def prepare(self) -> None:
        """Finds out who asks.

        Raises:
            Unauthenticated: Nobody we know.
            NotAllowed: Somebody without the scope.
            HTTPError: The body is too large.
        """
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None and not stream.closed():
            stream.set_nodelay(True)
        scopes = self.needed_scopes()
        if scopes:
            self.principal = await self._authenticated()
            self.principal.require(*scopes)
        if len(self.request.body) > self.max_body:
            raise HTTPError(413, f"the body is larger than {self.max_body // 2**20} MiB")

    async def _authenticated(self) -> Principal:
        token = self.get_query_argument("token", None) if self.key_in_query else None
        key = bearer(self.request.headers, token)
        principal = None if key is None else self.service.keys.verify(key)
        if principal is not None:
            self.by_key = True
            self.welcome(principal)
            return principal
        principal = await self.identify()
        if principal is None:
            raise Unauthenticated(
                "the key is not valid" if key else "no key was given; send Authorization: Bearer <key>"
            )
        return principal

    def welcome(self, principal: Principal) -> None:
        """A key was accepted; a mount may note that."""

    async def identify(self) -> Principal | None:
        """Who asks, by the means of the mount other than our keys."""
        raise NotImplementedError

    def touch(self) -> None:
        """Inference is going on; a mount that is culled when idle notes that."""

    def json_body(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            BadRequest: It is none.
        """
        return decode_object(self.request.body)

    def answer(self, value: Any, status: int = 200) -> None:
        """Sends a JSON answer."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(encode(value))

    def envelope(self, fault: Fault) -> Any:
        """The body of an error answer, in the door's dialect."""
        return envelope(fault.status, fault.message, fault.code, fault.param)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Sends an error in the envelope; an unexpected one without its internals."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        self.set_header("Content-Type", "application/json")
        if isinstance(error, InferenceError):
            self.set_status(error.http_status, None if error.http_status in _KNOWN else error.code)
            if error.retry_after is not None and math.isfinite(error.retry_after):
                self.set_header("Retry-After", str(max(1, math.ceil(error.retry_after))))
            if isinstance(error, Unauthenticated):
                self.set_header("WWW-Authenticate", 'Bearer realm="uia_lab"')
        self.finish(encode(self.envelope(self.fault(error, status_code))))

    def fault(self, error: BaseException | None, status: int = 500) -> Fault:
        """What may be told of an error.

        Args:
            error: The error.
            status: Status of the answer, where the error has none of its own.
        """
        if isinstance(error, InferenceError):
            return Fault(error.http_status, error.message, error.code, error.param)
        if status >= 500:
            return Fault(status, f"an internal error, logged under {self.request_id}", "internal_error")
        phrase = HTTPStatus(status).phrase if status in _KNOWN else "error"
        message = error.get_message() if isinstance(error, HTTPError) else None
        return Fault(status, message or phrase, phrase.lower().replace(" ", "_"))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Logs what nobody expected, without the address's query, which may hold a key."""
        if isinstance(value, (InferenceError, HTTPError, StreamClosedError)):
            log.debug("%s %s: %s", self.request_id, self._request_summary(), value)
        elif typ is not None and value is not None:
            log.error(
                "unexpected error in %s (%s)",
                self._request_summary(),
                self.request_id,
                exc_info=(typ, value, tb),
            )

    def _request_summary(self) -> str:
        return f"{self.request.method} {self.request.path} ({self.request.remote_ip})"

    def hang_up(self) -> None:
        """The mount stops: ends what this door has under way."""


_KNOWN = {int(status) for status in HTTPStatus}
