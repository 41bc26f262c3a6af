"""An upstream on loopback whose answers are given byte by byte."""

import asyncio
import json
import socket
from typing import Any, Self

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = object()
CUT = object()
HOLD = object()
LONGEST_HOLD_S = 60.0


class ByteServer:
    """One server on a free port; an asynchronous context manager.

    Attributes:
        script: What a chat is answered with, step by step: bytes are one chunk of the body, an Event is
            waited for, ENDLESS repeats the last bytes for ever, HOLD says nothing more, CUT ends the
            connection within the body, and an int as the first step is a status.
        asked: The bodies of the chats, as they came.
        left: Set when a client leaves an answer that was not at its end.
        written: Bytes that the client's side has taken.
        silent: Whether it does not answer probes either.
    """

    def __init__(self, *script: Any, kind: bytes = b"text/event-stream") -> None:
        self.script = script
        self.kind = kind
        self.asked: list[bytes] = []
        self.left = asyncio.Event()
        self.written = 0
        self.silent = False
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def json(self) -> Any:
        """The body asked last."""
        return json.loads(self.asked[-1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        if head.startswith(b"GET"):
            if self.silent:
                await asyncio.sleep(LONGEST_HOLD_S)
            body = b'{"object":"list","data":[{"id":"m"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return True
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.asked.append(await reader.readexactly(length))
        gone = asyncio.ensure_future(reader.read(1))
        answer = asyncio.ensure_future(self._answer(writer))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.left.set()
                return False
            return answer.result()
        finally:
            for task in (gone, answer):
                task.cancel()
            await asyncio.gather(gone, answer, return_exceptions=True)

    async def _answer(self, writer: asyncio.StreamWriter) -> bool:
        script = list(self.script)
        if script and isinstance(script[0], int):
            status, body = script
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            return True
        writer.write(HEAD % self.kind)
        last = b""
        for step in script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is HOLD:
                await asyncio.sleep(LONGEST_HOLD_S)
            elif step is CUT:
                writer.write(b"ff\r\n")
                await writer.drain()
                writer.close()
                return False
            else:
                while True:
                    last = step if isinstance(step, bytes) else last
                    writer.write(b"%x\r\n" % len(last) + last + b"\r\n")
                    await writer.drain()
                    self.written += len(last)
                    if step is not ENDLESS:
                        break
                # Each piece is a read of its own on the other side.
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        # One answer a connection keeps the reads apart that watch for a client who leaves.
        return False
