"""``/mcp``: the tools of this service for MCP clients, over streamable HTTP."""

import asyncio
import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import INFER, READ
from uia_lab.dialects.hints import passed_through
from uia_lab.dialects.json_body import MAX_DEPTH, decode_object
from uia_lab.domain.errors import NoBackendAvailable
from uia_lab.doors.asgi import Exchange
from uia_lab.doors.base import Door

if TYPE_CHECKING:
    from uia_lab.doors.mcp_sessions import McpSessions
    from uia_lab.doors.mcp_tools import Caller

INSTALL = "the package mcp is not installed: pip install 'uia-lab[mcp]'"


def is_installed() -> bool:
    """Whether the SDK is there; it is not imported for that."""
    return find_spec("mcp") is not None


class McpDoor(Door):
    """One HTTP request of an MCP client, of any revision; each tool and resource then takes its own scope."""

    scopes: ClassVar[tuple[str, ...]] = (READ, INFER)
    _exchange: Exchange | None = None
    _caller: "Caller | None" = None

    async def get(self) -> None:
        """Opens the stream of a session's own messages."""
        await self._serve()

    async def post(self) -> None:
        """Takes one message and answers it."""
        body = self.request.body
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
            # The SDK bounds the bytes of a message, but neither its depth nor its parts.
            decode_object(body)
        await self._serve()

    async def delete(self) -> None:
        """Ends a session."""
        await self._serve()

    async def _serve(self) -> None:
        if not self.service.config.enable_mcp:
            raise HTTPError(404, "the MCP door is switched off (enable_mcp)")
        if not is_installed():
            raise HTTPError(501, INSTALL)
        sessions = await self._sessions()
        from uia_lab.doors.mcp_tools import Caller

        self._caller = Caller(
            self.principal, self.touch, (*self.principal.via, *passed_through(self.request.headers))
        )
        self._exchange = Exchange(self, self.timings.stalled_s)
        self.open_doors.enter(self)
        try:
            await sessions.serve(self._exchange, self._caller)
        finally:
            self.open_doors.leave(self)

    async def _sessions(self) -> "McpSessions":
        """Those of this mount; the first request waits until the SDK is imported, and nobody else does."""
        found: McpSessions | None = self.settings.get("uia_mcp")
        if found is None:
            module = await asyncio.to_thread(importlib.import_module, "uia_lab.doors.mcp_sessions")
            if self.open_doors.closing:
                raise NoBackendAvailable("the server is stopping", retry_after=5)
            if (found := self.settings.get("uia_mcp")) is None:
                found = self.settings["uia_mcp"] = module.McpSessions(self.service, self.open_doors)
        return found

    def hang_up(self) -> None:
        """Ends what the client waits for."""
        if self._exchange is not None:
            self._exchange.leave()
        for request_id in list(self._caller.running) if self._caller is not None else ():
            self.manager.cancel(request_id)

    def on_connection_close(self) -> None:
        """Nobody waits any more: an answer is kept for no one, so its request is cancelled."""
        self.hang_up()
        super().on_connection_close()
