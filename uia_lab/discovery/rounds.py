"""Rounds of looking around, in the background."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Rounds:
    """Looks at once when it is started, and again and again until it is stopped.

    Args:
        look: Looks everywhere once.
        what: What is looked for, for the log.
        pause: Gives the seconds until the next round.
    """

    def __init__(self, look: Callable[[], Awaitable[object]], what: str, pause: Callable[[], float]) -> None:
        self._look = look
        self._what = what
        self._pause = pause
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look in the background."""
        self._task = asyncio.create_task(self._run(), name=f"uia-look-for-{self._what}")

    async def stop(self) -> None:
        """Ends it, in the middle of a round too."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:
                # The next round may go better; the service runs without it.
                log.exception("looking for %s failed", self._what)
            await asyncio.sleep(self._pause())
