"""A backend at a port of this machine, which is well only while nobody else's process listens there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from uia_lab.domain.backends import Backend, BackendStatus, Probe
from uia_lab.domain.events import Event
from uia_lab.domain.requests import InferenceRequest


class Watched:
    """Asks whose port it is before each look, since whoever comes first takes a port that was given up.

    Args:
        backend: The backend; all else about it is as it is.
        stranger: Gives the user that the port belongs to, if that is another person. May block.
    """

    def __init__(self, backend: Backend, stranger: Callable[[], int | None]) -> None:
        self.backend = backend
        self._stranger = stranger

    def __repr__(self) -> str:
        return repr(self.backend)

    def __getattr__(self, name: str) -> Any:
        if name == "backend":
            # A copy that is not made yet has none.
            raise AttributeError(name)
        return getattr(self.backend, name)

    async def start(self) -> None:
        """Gets ready to serve."""
        await self.backend.start()

    async def stop(self) -> None:
        """Closes everything."""
        await self.backend.stop()

    async def probe(self) -> Probe:
        """Looks how it is; a stranger's server is not asked."""
        user = await asyncio.to_thread(self._stranger)
        if user is not None:
            return Probe(BackendStatus.OFFLINE, of_another_user(user))
        return await self.backend.probe()

    def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """The answer's events."""
        return self.backend.infer(request)


def of_another_user(user: int) -> str:
    """The reason why what listens at a port is not used.

    Args:
        user: Whose it is.
    """
    return f"belongs to another user of this machine ({user}); add it by hand to use it"
