"""The one HTTP client session that every backend by address shares."""

import asyncio
from typing import TYPE_CHECKING

from uia_lab.access.endpoints import EndpointPolicy

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 5.0
MOST_CONNECTIONS = 1024
# Servers close idle connections after 5 s and more; one that closes as we write would fail a request.
KEEP_ALIVE_S = 4.0


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
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> "aiohttp.ClientSession":
        """The session; a new one where the loop of the last one has ended."""
        here = asyncio.get_running_loop()
        if self._session is None or self._session.closed or self._loop is not here:
            self._session, self._loop = self._open(), here
        return self._session

    async def close(self) -> None:
        """Closes the session and every connection; it opens again at the next use."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()

    def _open(self) -> "aiohttp.ClientSession":
        import aiohttp

        connector = aiohttp.TCPConnector(
            limit=MOST_CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S, resolver=self._endpoints.resolver()
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed bodies are neither bounded nor streamed well.
            headers={"Accept-Encoding": "identity"},
        )
