"""What passes between the loop and the trio thread, one item at a time, with few wake-ups."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from uia_lab.domain.errors import BackendFailed, Cancelled, InferenceError

T = TypeVar("T")

WINDOW = 256
"""Chunks of one answer that may be on their way."""
MOST_HELD = 64 << 20
"""Bytes of one answer that wait for whoever reads it: a chunk may be large, and so many of them would be."""


class Inbox(Generic[T]):
    """From the trio thread to whoever waits on the loop; bounded.

    Args:
        tell: Calls a function on the loop, soon.
        most: Items it holds; with one more it fails.
        size: Bytes of an item, of which it holds MOST_HELD.
    """

    def __init__(
        self, tell: Callable[..., None], most: int = 2 * WINDOW, size: Callable[[T], int] = lambda _: 0
    ) -> None:
        self._tell = tell
        self._most = most
        self._size = size
        # Bytes so far, each counted by one thread alone.
        self._came = self._went = 0
        self._items: deque[tuple[T, int]] = deque()
        self._news = asyncio.Event()
        self._woken = False
        self._error: InferenceError | None = None

    def put(self, item: T) -> bool:
        """Adds an item; False where it holds as many as it may, and fails."""
        size = self._size(item)
        if len(self._items) >= self._most or self._came - self._went + size > MOST_HELD:
            self.fail(BackendFailed("the peer sends more than it was asked for"))
            return False
        self._came += size
        self._items.append((item, size))
        self._wake()
        return True

    def fail(self, error: InferenceError) -> None:
        """Nothing more comes; what has come is still given."""
        if self._error is None:
            self._error = error
        self._wake()

    async def get(self) -> T:
        """The next item, on the loop.

        Raises:
            InferenceError: Nothing more comes.
        """
        while True:
            # Looked at before the items: what came just before the end is in by then.
            error = self._error
            if self._items:
                item, size = self._items.popleft()
                self._went += size
                return item
            if error is not None:
                raise error
            self._news.clear()
            await self._news.wait()

    def _wake(self) -> None:
        # The item is in before this is looked at, so whoever is woken by an earlier call sees it as well.
        if not self._woken:
            self._woken = True
            self._tell(self._look)

    def _look(self) -> None:
        self._woken = False
        self._news.set()


class Answer:
    """One answer on its way to a peer.

    Args:
        label: Its id on the stream.
        window: Chunks that may be on their way.
        put: Hands an item to whoever writes the stream.

    Attributes:
        acks_itself: Whether what is written counts as taken, since the peer does not say what it took.
        written: Chunks that were written; belongs to the trio thread.
    """

    def __init__(self, label: str, window: int, put: Callable[[tuple["Answer", Any]], None]) -> None:
        self.label = label
        self.acks_itself = False
        self.written = 0
        self._window = window
        self._put = put
        self._sent = 0
        self._acked = 0
        self._room = asyncio.Event()

    def put(self, item: Any) -> None:
        """Sends something that counts as no chunk."""
        self._put((self, item))

    async def send(self, chunk: Any, patience_s: float) -> None:
        """Sends a chunk, and waits until there is room for the next one.

        Raises:
            Cancelled: The peer took nothing for that long.
        """
        self._sent += 1
        self._put((self, chunk))
        if self._sent - self._acked < self._window:
            # Whoever has the next chunk ready would otherwise keep the loop to itself.
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(patience_s):
                while self._sent - self._acked >= self._window:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise Cancelled(f"the peer took nothing of its answer for {patience_s:g} s") from None

    def ack(self, seq: int) -> None:
        """The peer has taken the chunks before ``seq``."""
        if self._acked < seq <= self._sent:
            self._acked = seq
            self._room.set()
