"""A chat server on loopback that breaks in the ways real ones do, switchable while it runs.

It speaks as much of OpenAI's dialect as a fault needs: ``POST /v1/chat/completions`` as server-sent events
and ``GET /v1/models``. It writes to the socket itself, so that a stream can end in the middle of anything.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Self

LARGEST_REQUEST = 1 << 20
MOST_CONNECTIONS = 1_000
LONGEST_HOLD_S = 60.0


class Fault(StrEnum):
    """One way to break; those of a stream strike after ``after`` tokens."""

    NONE = "none"
    UNAVAILABLE = "instant 503"
    RATE_LIMITED = "429 with Retry-After"
    SILENT_AFTER_ACCEPT = "silent after accept"
    SILENT_AFTER_HEADERS = "silent after headers"
    CUT = "cut mid-stream"
    STALLED = "stalled mid-stream"
    ERROR_FRAME = "error frame inside a 200"
    MALFORMED = "malformed chunk"
    SLOW = "slow"
    FLAPPING = "flapping"
    REFUSED = "refused"


class FaultServer:
    """One server on a free port of loopback; an asynchronous context manager.

    Args:
        tokens: Tokens of an answer; every server gives the same ones.
        model: The one model it lists.

    Attributes:
        fault: How it breaks now; see :meth:`switch`.
        after: Tokens sent before a fault of the stream strikes; after 0 of them nothing but headers came.
        retry_after: Seconds that a 429 asks for.
        gap_s: Seconds before each token while it is slow.
        period: Requests in a row that are good, then bad, while it flaps; the first ones are bad.
        politely: Whether a cut is a proper end of the body without ``[DONE]``; else of the connection.
        strike: A fault of the stream waits for it; clear it to read what comes before the fault first.
        connections: Connections seen.
        requests: Chat requests seen; probes are not among them.
        probes: ``GET /v1/models`` seen.
        answered: Chat requests answered to the end as intended, faults included.
        aborted: Chat requests that the client left.
        in_flight: Chat requests being answered.
        most_in_flight: The most of them there ever were at once.
    """

    def __init__(self, tokens: int = 8, model: str = "m") -> None:
        self.tokens = [f"t{number} " for number in range(tokens)]
        self.model = model
        self.fault = Fault.NONE
        self.after = 2
        self.retry_after = 2
        self.gap_s = 0.02
        self.period = 1
        self.politely = False
        self.strike = asyncio.Event()
        self.strike.set()
        self.connections = self.requests = self.probes = 0
        self.answered = self.aborted = self.in_flight = self.most_in_flight = 0
        self.port = 0
        self._flaps = 0
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.tokens)

    async def __aenter__(self) -> Self:
        self._reserve()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    async def switch(self, fault: Fault, **settings: Any) -> None:
        """Breaks in another way from the next request on, or no more.

        Args:
            fault: How; REFUSED closes the listening socket and every connection, and keeps the port.
            **settings: Attributes to change along with it.
        """
        for name, value in settings.items():
            if not hasattr(self, name):
                raise AttributeError(name)
            setattr(self, name, value)
        was, self.fault = self.fault, fault
        self._flaps = 0
        if fault is Fault.REFUSED and was is not Fault.REFUSED:
            await self._close()
            self._reserve()
        elif was is Fault.REFUSED and fault is not Fault.REFUSED:
            await self._listen()

    async def until(self, condition: Callable[[Self], bool], seconds: float = 10.0) -> None:
        """Waits until the counters satisfy a condition.

        Raises:
            TimeoutError: They did not in time.
        """
        async with asyncio.timeout(seconds):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def until_idle(self, seconds: float = 10.0) -> None:
        """Waits until no request is being answered: whoever left has been noticed."""
        await self.until(lambda self: self.in_flight == 0, seconds)

    def _reserve(self) -> None:
        # Bound but not listening: the port stays ours and a connection is refused.
        # With the protocol named, asyncio switches Nagle's algorithm off.
        self._reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", self.port))
        self.port = self._reserved.getsockname()[1]

    async def _listen(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Link(self), sock=self._reserved, backlog=512
        )
        self._reserved = None

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        links = list(self._links)
        for link in links:
            link.transport.abort()
        await asyncio.gather(*(link.task for link in links if link.task), return_exceptions=True)
        # connection_lost is called in a later turn of the loop.
        async with asyncio.timeout(10):
            while self._links:
                self._changed.clear()
                await self._changed.wait()

    def _count(self, **changes: int) -> None:
        for name, change in changes.items():
            setattr(self, name, getattr(self, name) + change)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._changed.set()

    def _fault_now(self) -> Fault:
        """The fault of a request that comes now; a flapping server is one of two."""
        if self.fault is not Fault.FLAPPING:
            return self.fault
        bad = self._flaps // self.period % 2 == 0
        self._flaps += 1
        return Fault.UNAVAILABLE if bad else Fault.NONE


class _Link(asyncio.Protocol):
    """One connection: requests one after the other, each answered by a task that ends with it."""

    transport: asyncio.Transport

    def __init__(self, server: FaultServer) -> None:
        self._server = server
        self._received = bytearray()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server._links.add(self)
        self._server._count(connections=1)
        if len(self._server._links) > MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._links.discard(self)
        self._server._changed.set()
        if self.task is not None:
            self.task.cancel()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > LARGEST_REQUEST:
            self.transport.abort()
        elif self.task is None:
            self._next()

    def _next(self) -> None:
        head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._received = bytearray(rest[length:])
        method, path, _ = first.split(" ", 2)
        self.task = asyncio.create_task(self._serve(method, path))
        self.task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and not self.transport.is_closing():
            self._next()

    async def _serve(self, method: str, path: str) -> None:
        server = self._server
        if (method, path) == ("GET", "/v1/models"):
            server._count(probes=1)
            await self._models()
        elif (method, path) == ("POST", "/v1/chat/completions"):
            server._count(requests=1, in_flight=1)
            try:
                await self._chat(server._fault_now())
            except asyncio.CancelledError:
                server._count(in_flight=-1, aborted=1)
                raise
            server._count(in_flight=-1, answered=1)
        else:
            self._json("404 Not Found", {"error": {"message": f"no {path} here", "code": "not_found"}})

    async def _models(self) -> None:
        server = self._server
        match server.fault:
            case Fault.SILENT_AFTER_ACCEPT:
                await self._hold()
            case Fault.UNAVAILABLE:
                self._unavailable()
            case _:
                models = [{"id": server.model, "object": "model"}]
                self._json("200 OK", {"object": "list", "data": models})

    async def _chat(self, fault: Fault) -> None:
        server = self._server
        match fault:
            case Fault.UNAVAILABLE:
                return self._unavailable()
            case Fault.RATE_LIMITED:
                error = {"message": "too many requests", "code": "rate_limit_exceeded"}
                return self._json(
                    "429 Too Many Requests", {"error": error}, f"Retry-After: {server.retry_after}\r\n"
                )
            case Fault.SILENT_AFTER_ACCEPT:
                return await self._hold()
        self._write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if fault is Fault.SILENT_AFTER_HEADERS:
            return await self._hold()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for number, token in enumerate(server.tokens):
            if number == server.after and await self._struck(fault):
                return None
            # A slow server lets time pass; a sound one lets others run.
            await asyncio.sleep(server.gap_s if fault is Fault.SLOW else 0)
            self._event({"choices": [{"index": 0, "delta": {"content": token}}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 3, "completion_tokens": len(server.tokens)}
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        return self._write(b"0\r\n\r\n")

    async def _struck(self, fault: Fault) -> bool:
        """Does what a fault does in the middle of a stream; True if that was its end."""
        await self._server.strike.wait()
        match fault:
            case Fault.CUT:
                if self._server.politely:
                    self._write(b"0\r\n\r\n")
                else:
                    # What was written goes out first: an abort would drop it.
                    self._write(b"ff\r\ndata: {")
                    self.transport.close()
            case Fault.STALLED:
                await self._hold()
            case Fault.ERROR_FRAME:
                self._event({"error": {"message": "the engine is out of memory", "code": 500}})
                self._write(b"0\r\n\r\n")
            case Fault.MALFORMED:
                self._chunk(b'data: {"choices": [{"index": 0, "del\n\n')
                self._write(b"0\r\n\r\n")
            case _:
                return False
        return True

    async def _hold(self) -> None:
        """Says nothing until the client leaves."""
        await asyncio.sleep(LONGEST_HOLD_S)
        self.transport.abort()

    def _unavailable(self) -> None:
        self._json("503 Service Unavailable", {"error": {"message": "overloaded", "code": "overloaded"}})

    def _json(self, status: str, body: dict[str, Any], headers: str = "") -> None:
        data = json.dumps(body).encode()
        self._write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def _event(self, body: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self._write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)
