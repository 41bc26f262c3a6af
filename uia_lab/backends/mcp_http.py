"""The SDK's HTTP over our own session, which knows the addresses that are never called."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpx2

from uia_lab.backends.client_session import SharedSession
from uia_lab.domain.errors import Unauthenticated

GOODBYE_S = 2.0
"""Seconds a server may take to end its session; one that is frozen must not keep the connection open."""
LARGEST_BODY = 16 * 1024 * 1024
"""Bytes of an answer that is no stream of events; of those each is bounded by the SDK."""


class SessionTransport(httpx2.AsyncBaseTransport):
    """Sends requests by the session that every backend by address shares; redirects are the caller's.

    Args:
        session: The session.
    """

    def __init__(self, session: SharedSession) -> None:
        self._session = session

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response, once its headers are there.

        Raises:
            httpx2.TransportError: Nobody answers.
            Unauthenticated: The server does not take the key; of the SDK one would hear of an error only.
        """
        session = await self._session.get()
        body = await request.aread()
        headers = [(name, value) for name, value in request.headers.items() if name != "accept-encoding"]
        options: dict[str, Any] = {}
        if request.method == "DELETE":
            options["timeout"] = aiohttp.ClientTimeout(total=GOODBYE_S)
        try:
            response = await session.request(
                request.method,
                str(request.url),
                headers=headers,
                data=body or None,
                allow_redirects=False,
                **options,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise httpx2.ConnectError(str(error) or type(error).__name__, request=request) from error
        if response.status in (401, 403):
            response.close()
            raise Unauthenticated(f"it answers {response.status}: it does not take the key (api_key_env)")
        return httpx2.Response(
            response.status, headers=list(response.raw_headers), stream=_Body(response), request=request
        )


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        events = self._response.content_type == "text/event-stream"
        size = 0
        try:
            async for piece in self._response.content.iter_any():
                size += len(piece)
                if size > LARGEST_BODY and not events:
                    raise httpx2.ReadError(f"the answer is larger than {LARGEST_BODY >> 20} MiB")
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise httpx2.ReadError(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        # What was read to its end serves again; anything else is cut.
        if not self._response.content.at_eof():
            self._response.close()
        self._response.release()
