"""Answers that share one socket: each request's messages wait in an inbox of their own."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from uia_lab.domain.errors import Cancelled, InferenceError

MOST_MESSAGES = 4096
MOST_BYTES = 4 * 1024 * 1024
# A full one has room again when this much of it is free.
ROOM = 1 / 64
# While one inbox is full nothing is read. Beside others it may hold the socket up for a moment only; alone it
# holds nobody up but its own sender, within the silence after which a connection counts as dead.
PATIENCE_S = 0.25
PATIENCE_ALONE_S = 10.0
REMEMBERED = 1024

Message: TypeAlias = tuple[str, Mapping[str, Any]]


class Inbox:
    """The messages of one answer, between the socket that brings them and the request that takes them.

    Attributes:
        error: Why nothing more comes; None while something may.
    """

    def __init__(self) -> None:
        self._messages: deque[tuple[Message, int]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._look = asyncio.Event()
        self.error: InferenceError | None = None

    @property
    def full(self) -> bool:
        """Whether the socket has to wait."""
        return len(self._messages) >= MOST_MESSAGES or self._bytes >= MOST_BYTES

    @property
    def has_room(self) -> bool:
        """Whether the socket need not wait any longer."""
        most = 1 - ROOM
        return self.error is not None or (
            len(self._messages) <= most * MOST_MESSAGES and self._bytes <= most * MOST_BYTES
        )

    def put(self, message: Message, size: int) -> None:
        """Adds a message of ``size`` bytes, unless nobody waits for it any more."""
        if self.error is None:
            self._messages.append((message, size))
            self._bytes += size
            self._news.set()

    async def get(self) -> Message:
        """The next message.

        Raises:
            InferenceError: Nothing more comes.
        """
        while not self._messages:
            if self.error is not None:
                raise self.error
            self._news.clear()
            await self._news.wait()
        message, size = self._messages.popleft()
        self._bytes -= size
        if self.has_room:
            self._look.set()
        return message

    def fail(self, error: InferenceError) -> None:
        """Nothing more comes; what has come is still given."""
        if self.error is None:
            self.error = error
        self._news.set()
        self._look.set()

    def look_again(self) -> None:
        """Whoever waits for room has a new reason to look at how things are."""
        self._look.set()

    async def change(self, seconds: float) -> None:
        """Waits for room, for an end, or for a reason to look again, and no longer than ``seconds``."""
        self._look.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._look.wait()


class Inboxes:
    """The inboxes of one socket, by request id.

    Args:
        stop: Tells the other side that nobody waits for an answer any more. It may wait for room: nobody
            waits for it.
    """

    def __init__(self, stop: Callable[[str], Awaitable[None]]) -> None:
        self._stop = stop
        self._open: dict[str, Inbox] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)
        self._stopping: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str) -> Inbox:
        """A new inbox; one that held up the socket alone does so no longer."""
        for other in self._open.values():
            other.look_again()
        inbox = self._open[request_id] = Inbox()
        return inbox

    def close(self, request_id: str, *, answered: bool) -> None:
        """Nobody waits for the answer any more; a socket that waits for room goes on.

        Args:
            request_id: The request.
            answered: Whether the other side has ended it; else it is told to stop.
        """
        self._end(request_id, Cancelled("the request has ended"), answered)

    def ended(self, request_id: str) -> bool:
        """Whether the request ended a short while ago, so that late messages are no mistake."""
        return request_id in self._ended

    async def put(self, request_id: str, message: Message, size: int) -> bool:
        """Hands a message over, and waits while its inbox is full: that slows the sender down.

        A request that makes no room within PATIENCE_S (PATIENCE_ALONE_S where it is the only one) is ended,
        for the sake of the others.

        Returns:
            False when nobody waits for that answer.
        """
        inbox = self._open.get(request_id)
        if inbox is None:
            return False
        if inbox.full:
            await self._room(request_id, inbox)
        inbox.put(message, size)
        return True

    def fail(self, error: InferenceError) -> None:
        """Every answer has broken off, and nobody is there to be told."""
        for inbox in self._open.values():
            # Each its own: an error that is raised in many places collects all their tracebacks.
            inbox.fail(type(error)(error.message))
        for task in self._stopping:
            task.cancel()

    async def _room(self, request_id: str, inbox: Inbox) -> None:
        now = asyncio.get_running_loop().time
        alone = len(self._open) == 1
        until = now() + (PATIENCE_ALONE_S if alone else PATIENCE_S)
        while not inbox.has_room:
            if alone and len(self._open) > 1:
                alone, until = False, now() + PATIENCE_S
            if (left := until - now()) <= 0:
                why = Cancelled("the answer was read too slowly for others that share its connection")
                self._end(request_id, why, answered=False)
                return
            await inbox.change(left)

    def _end(self, request_id: str, error: InferenceError, answered: bool) -> None:
        inbox = self._open.pop(request_id, None)
        if inbox is None:
            return
        self._ended.append(request_id)
        if not answered and inbox.error is None:
            task = asyncio.create_task(self._tell(request_id), name="uia-socket-stop")
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        inbox.fail(error)

    async def _tell(self, request_id: str) -> None:
        # Without a connection there is nobody left to tell.
        with contextlib.suppress(InferenceError):
            await self._stop(request_id)
