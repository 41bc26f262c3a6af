"""The one HTTP client session that every backend by address shares."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uia_lab.access.endpoints import EndpointPolicy

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 5.0
MOST_CONNECTIONS = 1024
# Servers close idle connections after 5 s and more.
KEEP_ALIVE_S = 4.0
# A connection that was closed while it lay idle fails at once; what fails later had been taken up.
STALE_S = 0.05


class SharedSession:
    """A client session that is made on the running loop when it is first needed.

    It keeps no cookies, follows no proxy of the environment and resolves names through the policy. It has no
    deadline beside that of a connection: the manager sets those of an answer.

    Args:
        endpoints: Which addresses may be called.
    """

    def __init__(self, endpoints: EndpointPolicy) -> None:
        self._endpoints = endpoints
        self._session: aiohttp.ClientSession | None = None
        # Whose connections serve once.
        self._fresh: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self) -> "aiohttp.ClientSession":
        """The session; a new one where the last one belongs to another loop."""
        here = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not here:
            last, fresh, loop = self._session, self._fresh, self._loop
            self._session, self._fresh, self._loop = self._open(), None, here
            await _close(last, loop)
            await _close(fresh, loop)
        return self._session

    async def close(self) -> None:
        """Closes the session and every connection; it opens again at the next use."""
        session, fresh = self._session, self._fresh
        self._session = self._fresh = None
        await _close(session, self._loop)
        await _close(fresh, self._loop)

    async def post(self, url: str, body: Callable[[], Any], **options: Any) -> "aiohttp.ClientResponse":
        """Posts and gives the response once its headers are there; redirects are not followed.

        A server may close an idle connection in the moment it is used again. Such a call was never taken up,
        and goes out once more over a connection of its own, as HTTP clients do. What breaks later may have
        been computed for, and is the caller's to try again.

        Args:
            url: Where to.
            body: Makes what is sent; a form can be sent only once.
            **options: Of :meth:`aiohttp.ClientSession.post`.
        """
        import aiohttp

        from uia_lab.backends.connector import reused

        session = await self.get()
        began = time.monotonic()
        try:
            return await session.post(url, data=body(), allow_redirects=False, **options)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not reused.get() or time.monotonic() - began > STALE_S:
                raise
        await self.get()
        if self._fresh is None:
            self._fresh = self._open(force_close=True)
        return await self._fresh.post(url, data=body(), allow_redirects=False, **options)

    def _open(self, *, force_close: bool = False) -> "aiohttp.ClientSession":
        import aiohttp

        from uia_lab.backends.connector import Connector

        kept: dict[str, Any] = {"force_close": True} if force_close else {"keepalive_timeout": KEEP_ALIVE_S}
        connector = Connector(limit=MOST_CONNECTIONS, resolver=self._endpoints.resolver(), **kept)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed bodies are neither bounded nor streamed well; one that comes all the same stays so.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )


async def _close(session: "aiohttp.ClientSession | None", loop: asyncio.AbstractEventLoop | None) -> None:
    """Closes a session on the loop it belongs to; where that has ended, its sockets ended with it."""
    if session is None or loop is None:
        return
    if loop is asyncio.get_running_loop() or loop.is_closed():
        await session.close()
    else:
        asyncio.run_coroutine_threadsafe(session.close(), loop)
