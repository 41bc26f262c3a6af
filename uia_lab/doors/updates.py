"""The live topics of one connection: the newest state of each, sent by one pump."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from uia_lab.doors.feeds import Feeds


class Updates:
    """Subscriptions of one client. A slow one misses states in between, never the newest.

    Args:
        feeds: Where the states come from, encoded already.
        send: Sends an encoded message, and returns when the client has room for more.
    """

    def __init__(self, feeds: Feeds, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._feeds = feeds
        self._send = send
        self._latest: dict[str, bytes] = {}
        self._sequence: dict[str, int] = {}
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Future[Any]] = set()

    def add(self, topics: Iterable[str]) -> None:
        """Subscribes; a topic that is subscribed already goes on."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._send_all(), name="uia-updates")
        for topic in topics:
            if topic not in self._sequence:
                self._sequence[topic] = 0
                self._feeds.join(topic, self._take)

    def remove(self, topics: Iterable[str]) -> None:
        """Unsubscribes; nothing of these topics is sent any more."""
        for topic in topics:
            if self._sequence.pop(topic, None) is None:
                continue
            self._latest.pop(topic, None)
            if (ended := self._feeds.leave(topic, self._take)) is not None:
                self._end(ended)

    def close(self) -> "asyncio.Future[Any]":
        """Ends everything; the future is done when it has ended."""
        self.remove(list(self._sequence))
        if self._pump is not None:
            self._pump.cancel()
            self._end(self._pump)
            self._pump = None
        return asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, future: "asyncio.Future[Any]") -> None:
        self._ending.add(future)
        future.add_done_callback(self._ending.discard)

    def _take(self, topic: str, raw: bytes) -> None:
        if topic in self._sequence:
            self._latest[topic] = raw
            self._news.set()

    async def _send_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._latest:
                topic = next(iter(self._latest))
                raw = self._latest.pop(topic)
                sequence = self._sequence[topic]
                self._sequence[topic] = sequence + 1
                # Only the envelope is made for each client; the state was encoded once for all of them.
                head = (
                    f'{{"type":"update","timestamp":{time.time():.6f},'
                    f'"topic":"{topic}","sequence":{sequence},"data":'
                )
                await self._send(b"".join((head.encode(), raw, b"}")))
