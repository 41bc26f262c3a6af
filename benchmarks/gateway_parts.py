"""The other processes of ``benchmarks.gateway``: an upstream, the floor, and the clients.

The upstream and the clients write and read sockets themselves, since they share the machine with what is
measured. Run as ``python -m benchmarks.gateway_parts upstream | floor URL | load ...``.
"""

import argparse
import asyncio
import json
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

MODEL = "bench"
CHUNKS = 100
PACED = b"paced"
GAP_S = 0.01
WORD = " word"
USAGE = {"prompt_tokens": 8, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 8}
REQUEST_S = 60.0


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    value = {**head, "system_fingerprint": None, "choices": choices, **more}
    data = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
    return _chunk(data)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _piece(delta: dict[str, Any], reason: str | None = None) -> bytes:
    return _event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}])


def _json(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    )


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OPENING = _piece({"role": "assistant", "content": ""})
PIECE = _piece({"content": WORD})
ENDING = _piece({}, "stop")
USAGE_PIECE = _event([], usage=USAGE)
STREAM_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = _json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
WHOLE = _json(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": WORD * CHUNKS},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
)


class Upstream(asyncio.Protocol):
    """Answers a chat at once, or as a stream of CHUNKS pieces, each written on its own."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET"):
            self._received = body
            self.transport.write(MODELS)
            return
        lowered = head.lower()
        start = lowered.index(b"content-length:") + len(b"content-length:")
        length = int(lowered[start : lowered.find(b"\r\n", start) % (len(lowered) + 1)])
        if len(body) < length:
            return
        self._received = b""
        if b'"stream":true' not in body.replace(b" ", b""):
            self.transport.write(WHOLE)
            return
        pieces = [OPENING, *[PIECE] * CHUNKS, ENDING]
        if b"include_usage" in body:
            pieces.append(USAGE_PIECE)
        pieces.append(STREAM_END)
        self.transport.write(STREAM_HEAD)
        self._next(iter(pieces), GAP_S if PACED in body else 0.0)

    def _next(self, pieces: Any, gap: float) -> None:
        piece = next(pieces, None)
        if piece is None or self.transport.is_closing():
            return
        self.transport.write(piece)
        loop = asyncio.get_running_loop()
        if gap:
            loop.call_later(gap, self._next, pieces, gap)
        else:
            loop.call_soon(self._next, pieces, gap)


async def upstream() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


async def floor(url: str) -> None:
    """The least a gateway on tornado and one shared aiohttp session can do: it passes everything on."""
    import aiohttp
    from tornado.httpserver import HTTPServer
    from tornado.web import Application, RequestHandler

    connector = aiohttp.TCPConnector(limit=1024)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        class Pass(RequestHandler):
            async def post(self) -> None:
                self.request.connection.stream.set_nodelay(True)  # type: ignore[union-attr]
                headers = {"Content-Type": "application/json"}
                async with session.post(url, data=self.request.body, headers=headers) as answer:
                    self.set_status(answer.status)
                    self.set_header("Content-Type", answer.headers["Content-Type"])
                    if answer.content_type != "text/event-stream":
                        self.finish(await answer.read())
                        return
                    async for data in answer.content.iter_any():
                        self.write(data)
                        await self.flush()

        listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        listening.setblocking(False)
        server = HTTPServer(Application([("/.*", Pass)], log_function=lambda _: None))
        server.add_sockets([listening])
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions", flush=True)
        await asyncio.Event().wait()


class Client(asyncio.Protocol):
    """One connection that asks again and again until there are no more requests to make."""

    transport: asyncio.Transport

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._received = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self._load.first.append(time.perf_counter() - self._asked_at)
        self._received += data
        if self._whole():
            self._load.check(bytes(self._received))
            self._load.total.append(time.perf_counter() - self._asked_at)
            self._received.clear()
            self._ask()

    def _ask(self) -> None:
        if self._load.left <= 0:
            self.done.set_result(None)
            self.transport.close()
            return
        self._load.left -= 1
        self._asked_at = time.perf_counter()
        self.transport.write(self._load.request)

    def _whole(self) -> bool:
        received = self._received
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = received[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            return received.endswith(b"\r\n0\r\n\r\n")
        return len(received) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])


class Load:
    """Requests of one kind to one address.

    Args:
        url: Where to.
        key: Sent as a bearer token.
        kind: ``whole``, ``burst`` or ``paced``.
        count: How many.
    """

    def __init__(self, url: str, key: str, kind: str, count: int) -> None:
        self.left = count
        self.kind = kind
        self.first: list[float] = []
        self.total: list[float] = []
        address = url.removeprefix("http://")
        host, _, path = address.partition("/")
        self.host, _, port = host.partition(":")
        self.port = int(port)
        messages = [
            {"role": "system", "content": "You are a helpful assistant that answers briefly."},
            {"role": "user", "content": f"Write a hundred words, {kind}."},
        ]
        asked: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0.7, "max_tokens": 200}
        if kind != "whole":
            asked["stream"] = True
        body = json.dumps(asked).encode()
        head = (
            f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: benchmark\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body

    def check(self, answer: bytes) -> None:
        """An answer that is not whole would be a figure of something else."""
        words = answer.count(WORD.encode())
        if not answer.startswith(b"HTTP/1.1 200") or words != CHUNKS:
            raise RuntimeError(f"{words} words of {CHUNKS}: {answer[:600]!r}")
        if self.kind != "whole" and b"[DONE]" not in answer:
            raise RuntimeError("a stream without its end")

    async def run(self, clients: int) -> None:
        """Asks, each of so many clients one request after the other."""
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(lambda: Client(self), self.host, self.port) for _ in range(clients)
        ]
        async with asyncio.timeout(REQUEST_S + len(self.request)):
            await asyncio.gather(*(client.done for _, client in made))


def load(options: argparse.Namespace) -> None:
    work = Load(options.url, options.key, options.kind, options.count)
    asyncio.run(work.run(options.clients))
    figures = {"first_s": statistics.median(work.first), "total_s": statistics.median(work.total)}
    print(json.dumps(figures))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The other processes of benchmarks.gateway.")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("upstream")
    parts.add_parser("floor").add_argument("url")
    asked = parts.add_parser("load")
    asked.add_argument("url")
    asked.add_argument("key")
    asked.add_argument("kind", choices=("whole", "burst", "paced"))
    asked.add_argument("count", type=int)
    asked.add_argument("clients", type=int)
    options = parser.parse_args(arguments)
    if options.part == "load":
        load(options)
    else:
        try:
            asyncio.run(upstream() if options.part == "upstream" else floor(options.url))
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
