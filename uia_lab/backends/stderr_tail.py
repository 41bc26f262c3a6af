"""The last words of a child process, for the error that says why it failed."""

import asyncio
import os
from collections.abc import Callable
from typing import TextIO

from uia_lab.domain.texts import one_line

MOST = 8192


class StderrTail(asyncio.Protocol):
    """Reads what a process writes to stderr, and keeps the end of it.

    Use :meth:`open` on the loop; hand :attr:`writable` to the process, and close it afterwards.
    """

    def __init__(self) -> None:
        self._kept = b""
        self._transport: asyncio.BaseTransport | None = None
        self.writable: TextIO

    @classmethod
    async def open(cls) -> "StderrTail":
        """A pipe that is read from now on."""
        reading, writing = os.pipe()
        tail = cls()
        tail.writable = os.fdopen(writing, "w")
        source = os.fdopen(reading, "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: tail, source)
        return tail

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is read."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The process wrote something."""
        self._kept = (self._kept + data)[-MOST:]

    def said(self, without_keys: Callable[[str], str]) -> str:
        """The end of what was written, in one line.

        Args:
            without_keys: Takes out what is nobody's affair, before any of it is cut in halves.
        """
        return one_line(without_keys(self._kept.decode(errors="replace")))[-500:]

    def close(self) -> None:
        """Stops reading."""
        self.writable.close()
        if self._transport is not None:
            self._transport.close()
