"""Dials the peers this node wants, for ever and with back-off."""

import random
from collections.abc import Awaitable, Callable

import trio

from uia_lab.domain.errors import InferenceError, NotAllowed
from uia_lab.domain.peers import PeerState
from uia_lab.p2p.peer_table import PeerTable
from uia_lab.p2p.session import Session

FIRST_PAUSE_S = 1.0
AGAIN_S = 0.25
CANDIDATE_TRIES = 4


class Dialer:
    """One task for each wanted peer. Belongs to the trio thread.

    Args:
        nursery: Where its tasks run.
        table: The peers.
        connect: Connects to a peer.
        session: The session with a peer, if there is one.
        wanted: Whether a peer is dialled for ever.
        candidate: Whether a peer is dialled a few times, since it may be of use.
        longest_s: The longest pause.
        rng: Source of jitter.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        table: PeerTable,
        connect: Callable[[str], Awaitable[Session]],
        session: Callable[[str], Session | None],
        wanted: Callable[[str], bool],
        candidate: Callable[[str], bool],
        longest_s: float,
        rng: random.Random | None = None,
    ) -> None:
        self._nursery = nursery
        self._table = table
        self._connect = connect
        self._session = session
        self._wanted = wanted
        self._candidate = candidate
        self._longest_s = longest_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter needs no secrecy
        self._hurry: dict[str, trio.Event] = {}

    def consider(self, peer_id: str) -> None:
        """A peer was found, or what is thought of it has changed: if it is wanted, it is dialled soon."""
        if peer_id in self._hurry:
            self._hurry[peer_id].set()
        elif self._wanted(peer_id) or self._candidate(peer_id):
            self._hurry[peer_id] = trio.Event()
            self._nursery.start_soon(self._keep, peer_id)

    async def _keep(self, peer_id: str) -> None:
        failures = 0
        try:
            while (wanted := self._wanted(peer_id)) or self._candidate(peer_id):
                session = self._session(peer_id)
                if session is None:
                    try:
                        session = await self._connect(peer_id)
                    except InferenceError as error:
                        failures += 1
                        self._failed(peer_id, error)
                        if not wanted and failures >= CANDIDATE_TRIES:
                            return
                        await self._pause(peer_id, failures)
                        continue
                failures = 0
                await session.ended.wait()
                # The other side may be about to come back by itself.
                await trio.sleep(AGAIN_S * (1 + self._rng.random()))
        finally:
            del self._hurry[peer_id]

    async def _pause(self, peer_id: str, failures: int) -> None:
        longest = min(self._longest_s, FIRST_PAUSE_S * 2 ** min(failures - 1, 16))
        self._hurry[peer_id] = hurry = trio.Event()
        # Half of it at least: many that lost one peer must neither come back in step nor at once.
        with trio.move_on_after(longest * self._rng.uniform(0.5, 1.0)):
            await hurry.wait()

    def _failed(self, peer_id: str, error: InferenceError) -> None:
        if self._session(peer_id) is None:
            state = PeerState.REFUSED if isinstance(error, NotAllowed) else PeerState.OFFLINE
            self._table.gone(peer_id, state, error.message)
