"""The MCP sessions of one mount: opened at the first request, ended with the mount."""

import asyncio
from typing import TYPE_CHECKING

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from uia_lab.dialects.mcp import quieten
from uia_lab.domain.errors import NoBackendAvailable
from uia_lab.doors.asgi import Exchange
from uia_lab.doors.base import MAX_BODY
from uia_lab.doors.mcp_server import CALLER, ServiceServer
from uia_lab.doors.mcp_tools import Caller

if TYPE_CHECKING:
    from uia_lab.doors.open_doors import OpenDoors
    from uia_lab.unified_inference_service import UnifiedInferenceService

MOST_SESSIONS = 256
IDLE_S = 900.0
"""Seconds after which a session without a request is closed; its client begins another."""


class McpSessions:
    """Every session of the door.

    Args:
        service: What the door opens to.
        open_doors: Where it is told to end.
    """

    def __init__(self, service: "UnifiedInferenceService", open_doors: "OpenDoors") -> None:
        quieten()
        self._answers = ServiceServer(service)
        # Who is a stranger, and which pages and hosts may ask, the door has decided before.
        self._manager = StreamableHTTPSessionManager(
            self._answers.server,
            max_sessions=MOST_SESSIONS,
            session_idle_timeout=IDLE_S,
            max_request_body_size=MAX_BODY,
        )
        self._open_doors = open_doors
        self._end = asyncio.Event()
        self._ready = asyncio.Event()
        # Before the task begins, so that a mount which stops in between waits for it.
        open_doors.enter(self)
        # The SDK's task group is entered and left in one task.
        self._task = asyncio.create_task(self._run(), name="uia-mcp-sessions")

    def hang_up(self) -> None:
        """Ends every session; the mount waits until that is done."""
        self._end.set()

    async def serve(self, exchange: Exchange, caller: Caller) -> None:
        """Answers one HTTP request.

        Args:
            exchange: The request and its answer.
            caller: Who asks; a session serves nobody but the one that began it.

        Raises:
            NoBackendAvailable: The sessions have ended.
        """
        await self._ready.wait()
        if self._end.is_set():
            raise NoBackendAvailable("the server is stopping", retry_after=5)
        token = AccessToken(token="", client_id=caller.principal.name, scopes=sorted(caller.principal.scopes))
        await exchange.run(self._manager.handle_request, **{"user": AuthenticatedUser(token), CALLER: caller})

    async def _run(self) -> None:
        try:
            async with self._manager.run():
                self._ready.set()
                await self._end.wait()
            await self._answers.tools.close()
            _end_watchers()
        finally:
            # However it ended, nobody is to wait for it.
            self._end.set()
            self._ready.set()
            self._open_doors.leave(self)


def _end_watchers() -> None:
    """Ends the task in which sse_starlette waits for uvicorn to stop; it begins again where it is needed."""
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__qualname__", "") == "_shutdown_watcher":
            task.cancel()
