"""What waits to be written on a stream; filled from either thread, emptied in trio."""

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

T = TypeVar("T")


class Outbox(Generic[T]):
    """Items in order; all that are there are taken at once, so that a busy stream has few writes.

    Args:
        post: Calls a function in trio, soon; needed where items come from another thread.
    """

    def __init__(self, post: Callable[[Callable[[], None]], Any] | None = None) -> None:
        self._post = post
        self._items: deque[T] = deque()
        self._news = trio.Event()
        self._woken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Adds an item."""
        self._items.append(item)
        if self._post is None:
            self._news.set()
        elif not self._woken:
            # The item is in before this is looked at: whoever was woken a moment ago sees it as well.
            self._woken = True
            self._post(self._look)

    async def drain(self) -> list[T]:
        """All items, at least one."""
        while not self._items:
            self._news = trio.Event()
            await self._news.wait()
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def _look(self) -> None:
        self._woken = False
        self._news.set()
