"""The mount without Jupyter: our keys are the only identity."""

import asyncio

from tornado.httputil import HTTPServerRequest

from uia_lab.access.principals import Principal
from uia_lab.doors.base import Door

_TIMER = "uia_body_timer"


def expect_body(request: HTTPServerRequest, seconds: float) -> None:
    """Closes a connection whose body does not come in time.

    One timer; tornado's own ``body_timeout`` makes a task and a future for each request.

    Args:
        request: Its headers have come.
        seconds: How long its body may take.
    """
    stream = getattr(request.connection, "stream", None)
    if stream is not None:
        setattr(request, _TIMER, asyncio.get_running_loop().call_later(seconds, stream.close))


class Standalone(Door):
    """Knows nobody but the holders of keys."""

    async def prepare(self) -> None:
        """The body is there."""
        timer: asyncio.TimerHandle | None = getattr(self.request, _TIMER, None)
        if timer is not None:
            timer.cancel()
        await super().prepare()

    async def identify(self) -> Principal | None:
        """Nobody."""
        return None


def standalone_door(door: type[Door]) -> type[Door]:
    """A door as it stands without Jupyter."""
    return type(door.__name__, (Standalone, door), {"__doc__": door.__doc__, "__module__": door.__module__})
