"""What is under way at a mount, so that it can be ended."""

import asyncio
from typing import Protocol


class Hangable(Protocol):
    """Something that can be told to end."""

    def hang_up(self) -> None:
        """Ends what it has under way."""


class OpenDoors:
    """The answers and sockets of one mount."""

    def __init__(self) -> None:
        self._doors: set[Hangable] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.closing = False

    def __len__(self) -> int:
        return len(self._doors)

    def enter(self, door: Hangable) -> None:
        """A door has something under way."""
        self._doors.add(door)
        self._empty.clear()

    def leave(self, door: Hangable) -> None:
        """A door has nothing under way any more."""
        self._doors.discard(door)
        if not self._doors:
            self._empty.set()

    def end_of(self, principal: str) -> None:
        """Ends what a principal has under way, whose key was revoked or has expired."""
        for door in list(self._doors):
            who = getattr(door, "principal", None)
            if who is not None and who.name == principal:
                door.hang_up()

    async def close(self, seconds: float) -> bool:
        """Ends everything that is under way.

        Args:
            seconds: How long to wait for the ends.

        Returns:
            Whether everything ended in that time.
        """
        self.closing = True
        for door in list(self._doors):
            door.hang_up()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
