"""Who follows the peers of a node: each hears of the newest state of every peer that changed."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

from uia_lab.domain.peers import PeerInfo


class Changes:
    """Belongs to the loop.

    Args:
        view: Gives the state of a peer as it is now.
    """

    def __init__(self, view: Callable[[str], PeerInfo]) -> None:
        self._view = view
        self._followers: set[_Follower] = set()

    def publish(self, peer_id: str) -> None:
        """A peer has changed."""
        for follower in self._followers:
            follower.add(peer_id)

    def close(self) -> None:
        """The node has stopped: everybody hears what is left, and the end."""
        for follower in self._followers:
            follower.end()

    async def subscribe(self, known: Iterable[str]) -> AsyncGenerator[PeerInfo, None]:
        """Each known peer now, and each that changes from then on."""
        follower = _Follower(known)
        self._followers.add(follower)
        try:
            while (peer_id := await follower.next()) is not None:
                yield self._view(peer_id)
        finally:
            self._followers.discard(follower)


class _Follower:
    def __init__(self, known: Iterable[str]) -> None:
        # In order, and each once: of changes that nobody has read only the newest counts.
        self._waiting = dict.fromkeys(known)
        self._news = asyncio.Event()
        self._ended = False

    def add(self, peer_id: str) -> None:
        self._waiting[peer_id] = None
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def next(self) -> str | None:
        while not self._waiting:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        peer_id = next(iter(self._waiting))
        del self._waiting[peer_id]
        return peer_id
