"""An API on loopback that answers as it is told, and remembers what it was asked."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

from aiohttp import web

LONGEST_HOLD_S = 60.0
Handler = Callable[["web.Request", "web.StreamResponse"], Awaitable[None]]


class Asked(NamedTuple):
    """One request as it came."""

    method: str
    path: str
    headers: Any
    query: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedApi:
    """One server on a free port; an asynchronous context manager.

    Attributes:
        answers: What ``(method, path)`` is answered with: ``(status, body)`` or ``(status, body, headers)``,
            where the body is JSON-ready, bytes, a list of bytes written one by one, or a coroutine function
            that is given the request and a response to write to. Anything else is answered with 404.
        asked: Every request.
        before: Awaited before each answer, with the request.
        drops: Whether it drops each connection in place of an answer.
        left: Set when a client leaves an answer that was not at its end.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[Asked] = []
        self.left = asyncio.Event()
        self.before: Callable[[web.Request], Awaitable[None]] | None = None
        self.drops = False
        self.server_header: str | None = None
        self.port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lists(self, *models: str, **extra: Any) -> Self:
        """Makes it an OpenAI-compatible server with these models."""
        data = [{"id": name, "object": "model", **extra} for name in models]
        self.answers["GET", "/v1/models"] = (200, {"object": "list", "data": data})
        return self

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(
            web.Server(self._serve, handler_cancellation=True), shutdown_timeout=1.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    async def hold(self) -> None:
        """Says nothing until the client leaves."""
        await asyncio.sleep(LONGEST_HOLD_S)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.before is not None:
            try:
                await self.before(request)
            except asyncio.CancelledError:
                self.left.set()
                raise
        if self.drops:
            request.transport.abort()
        self.asked.append(Asked(request.method, request.path, request.headers, dict(request.query), body))
        answer = self.answers.get(
            (request.method, request.path), (404, {"error": {"message": "nothing here"}})
        )
        status, content, headers = (*answer, {})[:3]
        headers = {**({"Server": self.server_header} if self.server_header else {}), **headers}
        if isinstance(content, dict):
            return web.json_response(content, status=status, headers=headers)
        if isinstance(content, (bytes, str)):
            data = content.encode() if isinstance(content, str) else content
            return web.Response(body=data, status=status, headers=headers)
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        try:
            if callable(content):
                await content(request, response)
            else:
                for piece in content:
                    await response.write(piece)
                    await asyncio.sleep(0)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response


def sse(*values: Any, done: bool = True) -> list[bytes]:
    """Server-sent events, each a piece of its own."""
    pieces = [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]
    return [*pieces, b"data: [DONE]\n\n"] if done else pieces


def words(*texts: str) -> list[bytes]:
    """A chat that says these words."""
    deltas = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(texts)}}
    return sse(*deltas, end, usage)
