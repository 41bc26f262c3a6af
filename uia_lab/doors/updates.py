"""The live topics of one connection: the newest state of each, sent by one pump."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol


class Send(Protocol):
    """Sends one message of the given type."""

    def __call__(self, name: str, /, **fields: Any) -> Awaitable[None]:
        """Sends it, and is done when the client has room for more."""


class Updates:
    """Subscriptions of one client. A slow one misses states in between, never the newest.

    Args:
        subscribe: Gives the states of a topic, a snapshot first.
        send: Sends a message, and returns when the client has room for more.
    """

    def __init__(self, subscribe: Callable[[str], AsyncIterator[dict[str, Any]]], send: Send) -> None:
        self._subscribe = subscribe
        self._send = send
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._latest: dict[str, dict[str, Any]] = {}
        self._sequence: dict[str, int] = {}
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def add(self, topics: Iterable[str]) -> None:
        """Subscribes; a topic that is subscribed already goes on."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._send_all(), name="uia-updates")
        for topic in topics:
            if topic not in self._readers:
                self._readers[topic] = asyncio.create_task(self._read(topic), name=f"uia-update-{topic}")

    def remove(self, topics: Iterable[str]) -> None:
        """Unsubscribes; nothing of these topics is sent any more."""
        for topic in topics:
            self._latest.pop(topic, None)
            self._sequence.pop(topic, None)
            reader = self._readers.pop(topic, None)
            if reader is not None:
                self._end(reader)

    def close(self) -> "asyncio.Future[Any]":
        """Ends everything; the future is done when it has ended."""
        self.remove(list(self._readers))
        if self._pump is not None:
            self._end(self._pump)
            self._pump = None
        return asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, task: "asyncio.Task[None]") -> None:
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _read(self, topic: str) -> None:
        states = self._subscribe(topic)
        try:
            async for state in states:
                self._latest[topic] = state
                self._news.set()
        finally:
            await states.aclose()  # type: ignore[attr-defined]

    async def _send_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._latest:
                topic = next(iter(self._latest))
                state = self._latest.pop(topic)
                sequence = self._sequence[topic] = self._sequence.get(topic, -1) + 1
                await self._send("update", topic=topic, sequence=sequence, data=state)
