"""Live topics at a mount: each is sampled and encoded once a change, whatever the number of its listeners."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

from uia_lab.dialects.json_body import encode

log = logging.getLogger(__name__)

AT_ONCE = 16

Listener: TypeAlias = Callable[[str, bytes], None]
Subscribe: TypeAlias = Callable[[str], AsyncIterator[dict[str, Any]]]


class Feeds:
    """The topics that somebody listens to.

    Args:
        subscribe: Gives the states of a topic, a snapshot first.
    """

    def __init__(self, subscribe: Subscribe) -> None:
        self._subscribe = subscribe
        self._feeds: dict[str, _Feed] = {}

    def join(self, topic: str, listener: Listener) -> None:
        """Hands the listener the topic's state as JSON: a fresh snapshot, then each change."""
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = _Feed(topic, self._subscribe)
        feed.join(listener)

    def leave(self, topic: str, listener: Listener) -> "asyncio.Future[Any] | None":
        """Ends that; the future is done when nothing of the topic runs any more, None where others listen."""
        feed = self._feeds.get(topic)
        if feed is None or not feed.leave(listener):
            return None
        del self._feeds[topic]
        return feed.end()


class _Feed:
    def __init__(self, topic: str, subscribe: Subscribe) -> None:
        self._topic = topic
        self._subscribe = subscribe
        self._listeners: set[Listener] = set()
        self._newcomers: set[Listener] = set()
        self._latest = b""
        self._greeting: asyncio.Task[None] | None = None
        self._reading = self._begin(self._read)

    def join(self, listener: Listener) -> None:
        if listener in self._listeners:
            return
        self._listeners.add(listener)
        self._newcomers.add(listener)
        if len(self._listeners) > 1 and (self._greeting is None or self._greeting.done()):
            self._greeting = self._begin(self._greet)

    def leave(self, listener: Listener) -> bool:
        """Whether nobody is left."""
        self._listeners.discard(listener)
        self._newcomers.discard(listener)
        return not self._listeners

    def end(self) -> "asyncio.Future[Any]":
        tasks = [task for task in (self._reading, self._greeting) if task is not None]
        for task in tasks:
            task.cancel()
        return asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        async with aclosing(self._subscribe(self._topic)) as states:  # type: ignore[type-var]
            async for state in states:
                raw = encode(state)
                if raw == self._latest and not self._newcomers:
                    continue
                self._latest = raw
                self._newcomers.clear()
                for number, listener in enumerate(tuple(self._listeners), 1):
                    if listener in self._listeners:
                        listener(self._topic, raw)
                    if number % AT_ONCE == 0:
                        # Hundreds of sockets in one turn of the loop would keep everybody else waiting.
                        await asyncio.sleep(0)

    async def _greet(self) -> None:
        """A snapshot of now for those who have come since the last change: one for all of them."""
        while self._newcomers:
            async with aclosing(self._subscribe(self._topic)) as states:  # type: ignore[type-var]
                state = await anext(states, None)
                if state is None:
                    return
                raw = encode(state)
                newcomers, self._newcomers = self._newcomers, set()
                for listener in newcomers:
                    listener(self._topic, raw)
                if raw != self._latest:
                    # Should the state go back to the one before, that is news to those who came in between.
                    self._latest = b""

    def _begin(self, work: Callable[[], Any]) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work(), name=f"uia-update-{self._topic}")
        task.add_done_callback(_report)
        return task


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a live topic ended", exc_info=error)
