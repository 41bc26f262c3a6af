"""Something to tell a client while nothing comes."""

import asyncio
from collections.abc import Callable


class Waiting:
    """Calls back until it is stopped.

    Args:
        tell: Called on the loop.
        hold_s: Seconds before the first call.
        again_s: Seconds between two calls.
    """

    def __init__(self, tell: Callable[[], None], hold_s: float, again_s: float) -> None:
        self._tell = tell
        self._again_s = again_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(hold_s, self._ring)

    def stop(self) -> None:
        """No more calls."""
        self._timer.cancel()

    def _ring(self) -> None:
        self._timer = self._loop.call_later(self._again_s, self._ring)
        self._tell()
