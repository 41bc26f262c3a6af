"""Connections of the shared client session, and whether the one of a call had served before."""

import weakref
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

reused: ContextVar[bool] = ContextVar("reused", default=False)
"""Whether the connection of the latest call of this task had served another call before."""


class Connector(aiohttp.TCPConnector):
    """Notes of each connection whether it is used again; aiohttp's tracing tells it too, at every step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._served: weakref.WeakSet[ResponseHandler] = weakref.WeakSet()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the base class has it
    ) -> Connection:
        """A connection from the pool, or a new one."""
        reused.set(False)
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        if protocol is not None:
            reused.set(protocol in self._served)
            self._served.add(protocol)
        return connection
