"""Answers that share one socket: each request's messages wait in an inbox of their own."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeAlias

from uia_lab.domain.errors import Cancelled, InferenceError

MOST_MESSAGES = 256
MOST_BYTES = 4 * 1024 * 1024
# Less than the silence after which a connection counts as dead: while one inbox is full nothing is read.
PATIENCE_S = 10.0
REMEMBERED = 1024

Message: TypeAlias = tuple[str, Mapping[str, Any]]


class Inbox:
    """The messages of one answer, between the socket that brings them and the request that takes them."""

    def __init__(self) -> None:
        self._messages: deque[tuple[Message, int]] = deque()
        self._bytes = 0
        self._error: InferenceError | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the socket has to wait."""
        return len(self._messages) >= MOST_MESSAGES or self._bytes >= MOST_BYTES

    async def put(self, message: Message, size: int) -> None:
        """Adds a message of ``size`` bytes, and waits while the inbox is full: that slows the sender down.

        A request that takes nothing for PATIENCE_S seconds is ended, for the sake of the socket's others.
        """
        while self.full and self._error is None:
            self._room.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._room.wait()
            except TimeoutError:
                self.fail(Cancelled(f"nobody has read this answer for {PATIENCE_S:g} s"))
        if self._error is None:
            self._messages.append((message, size))
            self._bytes += size
            self._news.set()

    def fail(self, error: InferenceError) -> None:
        """Nothing more comes; what has come is still given."""
        if self._error is None:
            self._error = error
        self._news.set()
        self._room.set()

    async def get(self) -> Message:
        """The next message.

        Raises:
            InferenceError: Nothing more comes.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        message, size = self._messages.popleft()
        self._bytes -= size
        if not self.full:
            self._room.set()
        return message


class Inboxes:
    """The inboxes of one socket, by request id."""

    def __init__(self) -> None:
        self._open: dict[str, Inbox] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str) -> Inbox:
        """A new inbox."""
        inbox = self._open[request_id] = Inbox()
        return inbox

    def close(self, request_id: str) -> None:
        """Nobody waits for the answer any more; a socket that waits for room goes on."""
        inbox = self._open.pop(request_id, None)
        if inbox is not None:
            self._ended.append(request_id)
            inbox.fail(Cancelled("the request has ended"))

    def ended(self, request_id: str) -> bool:
        """Whether the request ended a short while ago, so that late messages are no mistake."""
        return request_id in self._ended

    async def put(self, request_id: str, message: Message, size: int) -> bool:
        """Hands a message over; False when nobody waits for that answer."""
        inbox = self._open.get(request_id)
        if inbox is not None:
            await inbox.put(message, size)
        return inbox is not None

    def fail(self, error: InferenceError) -> None:
        """Every answer has broken off."""
        for inbox in self._open.values():
            # Each its own: an error that is raised in many places collects all their tracebacks.
            inbox.fail(type(error)(error.message))
