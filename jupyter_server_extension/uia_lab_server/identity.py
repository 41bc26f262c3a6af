"""Jupyter's identities at our doors: a cookie, Jupyter's token or a hub's user becomes a principal."""

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.identity import User
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler

from uia_lab.access.principals import ADMIN, INFER, OUR_PRINCIPALS, READ, Principal
from uia_lab.domain.errors import NotAllowed, Unauthenticated
from uia_lab.domain.keys import GUEST_PRINCIPAL, KEY_PRINCIPAL
from uia_lab.domain.peers import PEER_PRINCIPAL
from uia_lab.doors.base import Door

RESOURCE = "uia"
CORS_HEADERS = "accept, authorization, content-type, x-api-key, x-xsrftoken"
_ACTIONS = {READ: "read", INFER: "execute", ADMIN: "write"}


class JupyterIdentity:
    """Mixed in before a door and JupyterHandler.

    Our keys are looked at first and open only our doors: nothing of Jupyter's ever asks this class.
    """

    auth_resource = RESOURCE

    def welcome(self: Any, principal: Principal) -> None:
        """Tells Jupyter's base who it is, for its log and its CORS headers."""
        self.current_user = self._jupyter_current_user = User(username=principal.name)
        # A key is explicit, as Jupyter's token is: no XSRF and no origin check, and no login cookie.
        self._token_authenticated = True
        self.set_cors_headers()

    async def identify(self: Any) -> Principal | None:
        """The user Jupyter knows, if its authorizer lets them do this.

        Raises:
            NotAllowed: A foreign page or host, a missing XSRF token, or the authorizer says no.
        """
        if not self.check_host():
            raise NotAllowed(f"the host {self.request.host!r} is not allowed (ServerApp.allow_remote_access)")
        try:
            await JupyterHandler.prepare(self, _redirect_to_login=False)
        except HTTPError as error:
            user = getattr(self, "_jupyter_current_user", None)
            if error.status_code == 403 and user is None:
                raise Unauthenticated(
                    "log in to Jupyter, or send a key: Authorization: Bearer <key>"
                ) from None
            if error.status_code == 404 and user is not None:
                # Jupyter's word for a foreign origin.
                raise NotAllowed(
                    "requests from other origins are not allowed (ServerApp.allow_origin)"
                ) from None
            raise
        user = self.current_user
        if user is None:
            return None
        if not isinstance(self, WebSocketHandler) and not self.check_origin():
            raise NotAllowed("requests from other origins are not allowed (ServerApp.allow_origin)")
        # The scopes are what the authorizer grants, not all: an administrator sees everybody's requests.
        held = {
            scope
            for scope, action in _ACTIONS.items()
            if await ensure_async(self.authorizer.is_authorized(self, user, action, RESOURCE))
        }
        if not held.intersection(self.needed_scopes()):
            actions = " or ".join(_ACTIONS[scope] for scope in self.needed_scopes())
            raise NotAllowed(f"Jupyter does not allow this user to {actions} on {RESOURCE}")
        return Principal(_name(user), frozenset(held))

    def check_xsrf_cookie(self: Any) -> None:
        """Jupyter's check, for those it knows by a cookie; whoever is unknown gets a 401 instead."""
        if getattr(self, "_jupyter_current_user", None) is not None:
            JupyterHandler.check_xsrf_cookie(self)

    async def prepare(self: Any) -> None:
        """A browser's preflight never carries an identity, and gets nothing but CORS headers."""
        if self.request.method != "OPTIONS":
            await super().prepare()  # type: ignore[misc]  # of the door it is mixed into

    def options(self: Any, *_: str) -> None:
        """Answers a preflight."""
        if self.allow_origin or self.allow_origin_pat:
            self.set_cors_headers()
            self.set_header("Access-Control-Allow-Headers", CORS_HEADERS)
            self.set_header("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS")
        self.set_status(204)
        self.finish()

    setattr(options, "__allow_unauthenticated", True)

    def touch(self: Any) -> None:
        """Inference is activity, so that no server is culled under a running generation."""
        self.settings["last_activity_times"]["uia_lab"] = datetime.now(UTC)


class JupyterSocketIdentity(JupyterIdentity):
    """The same for WebSockets, with Jupyter's origin check."""

    def check_origin(self: Any, origin: str | None = None) -> bool:
        """Same origin or one of ServerApp.allow_origin; those with a key or token from anywhere."""
        return bool(WebSocketMixin.check_origin(self, origin))


def jupyter_door(door: type[Door]) -> type[Door]:
    """A door as it stands inside Jupyter."""
    identity = JupyterSocketIdentity if issubclass(door, WebSocketHandler) else JupyterIdentity
    body = {"__doc__": door.__doc__, "__module__": door.__module__}
    made: type[Door] = type(door.__name__, (identity, door, JupyterHandler), body)
    for method in ("get", "post", "put", "patch", "delete", "head"):
        function = getattr(made, method)
        if function is not getattr(JupyterHandler, method):
            setattr(made, method, _declared(function, public=not door.scopes))
    return made


def _declared(function: Callable[..., Any], *, public: bool) -> Callable[..., Any]:
    """The method with the mark by which Jupyter sees that its authentication was thought of."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    setattr(method, "__allow_unauthenticated", public)
    return method


def _name(user: User) -> str:
    # Jupyter's single token stands for nobody in particular: it makes up a new name at each request.
    name = "jupyter" if user.name and user.name.startswith("Anonymous ") else str(user.username)
    # Nobody may pass for the holder of a key, for a peer, or for a principal of ours.
    taken = name.startswith((KEY_PRINCIPAL, PEER_PRINCIPAL, GUEST_PRINCIPAL)) or name in OUR_PRINCIPALS
    return f"user:{name}" if taken else name
