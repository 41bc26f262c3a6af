"""Live topics: one sample a change, fanned out to any number of subscribers, the newest state wins."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from uia_lab.domain.errors import BadRequest, suggestion

TOPICS = ("inference", "status", "backend", "queue")
GAP_S = 0.1


class Topics:
    """Publishes snapshots of each topic while somebody listens.

    Args:
        sample: Gives the state of a topic.
    """

    def __init__(self, sample: Callable[[str], dict[str, Any]]) -> None:
        self._sample = sample
        self._listeners = dict.fromkeys(TOPICS, 0)
        self._latest: dict[str, dict[str, Any]] = {}
        self._published: dict[str, asyncio.Event] = {}
        self._dirty = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._over = False

    def changed(self) -> None:
        """Something happened that a topic may show."""
        self._dirty.set()

    async def subscribe(self, topic: str) -> AsyncGenerator[dict[str, Any], None]:
        """The state now, then the newest state after each change, ten a second at most.

        Args:
            topic: One of TOPICS.

        Raises:
            BadRequest: No such topic.
        """
        if topic not in TOPICS:
            raise BadRequest(f"unknown topic {topic!r}.{suggestion(str(topic), TOPICS)}", param="topics")
        self._listeners[topic] += 1
        try:
            if self._pump is None:
                self._pump = asyncio.create_task(self._publish(), name="uia-topics")
            seen: dict[str, Any] | None = None
            self._latest[topic] = self._sample(topic)
            while not self._over:
                # Looked at before waiting: a state may have come while the subscriber was busy.
                if (latest := self._latest[topic]) is not seen:
                    seen = latest
                    yield latest
                else:
                    await self._published.setdefault(topic, asyncio.Event()).wait()
        finally:
            self._listeners[topic] -= 1
            if not any(self._listeners.values()):
                await self.aclose()

    async def end(self) -> None:
        """Ends every subscription."""
        self._over = True
        for published in self._published.values():
            published.set()
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the publishing, which the next subscriber begins anew."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _publish(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            for topic, listeners in self._listeners.items():
                if listeners:
                    self._latest[topic] = self._sample(topic)
                    # Everyone waiting on the old event wakes; the next change gets a new one.
                    self._published.pop(topic, asyncio.Event()).set()
            await asyncio.sleep(GAP_S)
