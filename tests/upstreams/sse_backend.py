"""The adapter of the tests for :class:`tests.upstreams.fault_server.FaultServer`: chat over SSE, no more."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    InferenceError,
    ModelNotFound,
    NoBackendAvailable,
    NotAllowed,
    RateLimited,
    Unauthenticated,
)
from uia_lab.domain.events import Chunk, Event, Finished, Started, Text, Usage
from uia_lab.domain.requests import InferenceRequest

ERRORS: dict[int, type[InferenceError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: NotAllowed,
    404: ModelNotFound,
    429: RateLimited,
    503: NoBackendAvailable,
}


class FaultServerBackend:
    """Asks a fault server; it decides nothing and sets no deadlines.

    Args:
        url: Where the server is.
        **capabilities: Fields of :class:`BackendCapabilities` that differ from those of a plain one.
    """

    def __init__(self, url: str, **capabilities: Any) -> None:
        capabilities.setdefault("external", False)
        self.capabilities = BackendCapabilities({"text-generation"}, supports_streaming=True, **capabilities)
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the session."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))

    async def stop(self) -> None:
        """Closes the session and its connections."""
        if self._session is not None:
            await self._session.close()

    async def probe(self) -> Probe:
        """Lists the models, which costs nothing."""
        assert self._session is not None
        try:
            async with self._session.get(f"{self._url}/v1/models") as response:
                if response.status != 200:
                    return Probe(BackendStatus.UNHEALTHY, f"answered a probe with {response.status}")
                listed = await response.json()
        except (aiohttp.ClientError, OSError) as error:
            return Probe(BackendStatus.OFFLINE, f"no answer to a probe: {error}")
        return Probe(BackendStatus.HEALTHY, f"serves {len(listed['data'])} models")

    async def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """The answer's events."""
        assert self._session is not None
        body = {
            "model": request.model,
            "messages": request.messages or [{"role": "user", "content": request.inputs}],
            "stream": True,
        }
        yield Started("")
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._session.post(f"{self._url}/v1/chat/completions", json=body)
            if response.status != 200:
                raise await _refusal(response)
            async for event in _events(response):
                yield event
        except (aiohttp.ClientError, ConnectionError) as error:
            raise BackendFailed(f"the connection broke: {type(error).__name__}: {error}") from error
        finally:
            if response is not None:
                response.close()


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    words: list[str] = []
    usage = Usage()
    reason = ""
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]" and reason:
            yield Finished("".join(words), usage, reason)
            return
        try:
            frame = json.loads(data)
        except ValueError:
            raise BackendFailed(f"sent a malformed chunk: {data[:80]!r}") from None
        if "error" in frame:
            raise BackendFailed(f"sent an error inside its answer: {frame['error']['message']}")
        if given := frame.get("usage"):
            usage = Usage(given["prompt_tokens"], given["completion_tokens"])
        for choice in frame["choices"]:
            reason = choice.get("finish_reason") or reason
            if text := choice["delta"].get("content"):
                yield Chunk(len(words), Text(text))
                words.append(text)
    raise BackendFailed(f"the stream ended after {len(words)} chunks without its end")


async def _refusal(response: aiohttp.ClientResponse) -> InferenceError:
    wait = response.headers.get("Retry-After")
    kind = ERRORS.get(response.status, BackendFailed)
    message = f"answered {response.status}: {(await response.json())['error']['message']}"
    return kind(message, retry_after=float(wait) if wait else None)
