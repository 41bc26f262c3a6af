"""The peers a node knows of, as the trio thread keeps them; the loop hears of each change."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from uia_lab.domain.peers import PeerInfo, PeerState

MOST_STRANGERS = 256
MOST_ADDRESSES = 16


class PeerTable:
    """Snapshots of peers, replaced as a whole at each change.

    Args:
        changed: Hears of each change; None as the second argument when a peer is forgotten.
        keep: Whether a peer is never forgotten.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        changed: Callable[[str, PeerInfo | None], None],
        keep: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._peers: dict[str, PeerInfo] = {}
        self._changed = changed
        self._keep = keep
        self._clock = clock

    def __iter__(self) -> Iterator[PeerInfo]:
        return iter(list(self._peers.values()))

    def get(self, peer_id: str) -> PeerInfo | None:
        """What is known of a peer."""
        return self._peers.get(peer_id)

    def found(self, peer_id: str, by: str, addresses: Iterable[str] = ()) -> PeerInfo:
        """A peer was found; where it is known, its addresses are put in front of the old ones.

        Args:
            peer_id: Its id.
            by: How it was found.
            addresses: Multiaddrs without ``/p2p/<id>``.
        """
        known = self._peers.get(peer_id)
        if known is None:
            self._make_room(peer_id)
            known = PeerInfo(peer_id=peer_id)
        merged = dict.fromkeys([*(f"{address}/p2p/{peer_id}" for address in addresses), *known.addresses])
        return self._put(
            msgspec.structs.replace(
                known, addresses=tuple(merged)[:MOST_ADDRESSES], found_by=known.found_by | {by}
            )
        )

    def update(self, peer_id: str, **changes: Any) -> None:
        """Changes fields of a known peer; nothing happens for any other."""
        known = self._peers.get(peer_id)
        if known is not None:
            self._put(msgspec.structs.replace(known, **changes))

    def connected(self, peer_id: str, **facts: Any) -> None:
        """A peer said hello."""
        now = self._clock()
        self.update(peer_id, state=PeerState.CONNECTED, reason="", connected_at=now, last_seen=now, **facts)

    def seen(self, peer_id: str, **facts: Any) -> None:
        """A peer gave a sign of life."""
        self.update(peer_id, last_seen=self._clock(), **facts)

    def gone(self, peer_id: str, state: PeerState, reason: str) -> None:
        """A peer cannot be asked any more."""
        self.update(peer_id, state=state, reason=reason, connected_at=None, load=None, rtt_ms=None)

    def forget(self, peer_id: str) -> None:
        """A candidate that led nowhere."""
        if self._peers.pop(peer_id, None) is not None:
            self._changed(peer_id, None)

    def _put(self, info: PeerInfo) -> PeerInfo:
        if self._peers.get(info.peer_id) != info:
            self._peers[info.peer_id] = info
            self._changed(info.peer_id, info)
        return info

    def _make_room(self, newcomer: str) -> None:
        if self._keep(newcomer):
            return
        strangers = [
            info.peer_id
            for info in self._peers.values()
            if not info.connected and not self._keep(info.peer_id)
        ]
        for peer_id in strangers[: max(0, len(strangers) + 1 - MOST_STRANGERS)]:
            self.forget(peer_id)
