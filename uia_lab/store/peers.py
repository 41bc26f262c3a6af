"""Trusted peers and open invites, shared by every server on the file."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from uia_lab.domain.peers import Invite, Quota, TrustedPeer
from uia_lab.store.database import Database
from uia_lab.store.schema import transaction

log = logging.getLogger(__name__)

T = TypeVar("T", TrustedPeer, Invite)

_PEER = "id, name, since, ours, quota, addresses"
_INVITE = "id, name, digest, expires_at, ours, quota"


class PeerStore:
    """Trusted peers and invites in the store: a :class:`uia_lab.p2p.trust.TrustStore`.

    Args:
        database: Where they are kept; open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[list[TrustedPeer], list[Invite]]:
        """All trusted peers, those trusted first at the beginning, and all open invites.

        Raises:
            StoreError: They cannot be read.
        """

        def step(connection: sqlite3.Connection) -> tuple[list[TrustedPeer], list[Invite]]:
            peers = connection.execute(f"SELECT {_PEER} FROM peers ORDER BY since").fetchall()  # noqa: S608
            invites = connection.execute(f"SELECT {_INVITE} FROM invites ORDER BY rowid").fetchall()  # noqa: S608
            return list(_readable(peers, _peer)), list(_readable(invites, _invite))

        return await asyncio.wrap_future(self._database.read(step))

    async def save_peer(self, peer: TrustedPeer) -> None:
        """Keeps a trusted peer; one of the same id is replaced.

        Raises:
            StoreError: It could not be written.
        """
        values = (
            peer.peer_id,
            peer.name,
            peer.added_at,
            peer.ours,
            _json(peer.quota),
            _json(peer.addresses),
        )
        await self._write(f"REPLACE INTO peers ({_PEER}) VALUES (?, ?, ?, ?, ?, ?)", values)  # noqa: S608

    async def move_peer(self, peer_id: str, addresses: tuple[str, ...]) -> bool:
        """Keeps where a trusted peer is; False where it is not trusted any more, whoever ended that.

        Raises:
            StoreError: It could not be written.
        """
        statement = "UPDATE peers SET addresses = ? WHERE id = ?"
        return await self._write(statement, (_json(addresses), peer_id)) > 0

    async def remove_peer(self, peer_id: str) -> None:
        """Forgets a trusted peer; nothing happens where there was none.

        Raises:
            StoreError: It could not be written.
        """
        await self._write("DELETE FROM peers WHERE id = ?", (peer_id,))

    async def save_invite(self, invite: Invite) -> None:
        """Keeps an open invite.

        Raises:
            StoreError: It could not be written.
        """
        values = (
            invite.id,
            invite.name,
            invite.digest,
            invite.expires_at,
            invite.ours,
            _json(invite.quota),
        )
        await self._write(f"INSERT INTO invites ({_INVITE}) VALUES (?, ?, ?, ?, ?, ?)", values)  # noqa: S608

    async def remove_invite(self, invite_id: str) -> bool:
        """Forgets an invite, used or withdrawn; False if there was none.

        Of several servers on the file only one is told True, so that an invite opens once.

        Raises:
            StoreError: It could not be written.
        """
        return await self._write("DELETE FROM invites WHERE id = ?", (invite_id,)) > 0

    async def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        """How many rows it changed."""

        def step(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                return connection.execute(statement, values).rowcount

        return await asyncio.wrap_future(self._database.write(step))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _readable(rows: list[tuple[Any, ...]], read: Callable[[tuple[Any, ...]], T]) -> Iterator[T]:
    for row in rows:
        try:
            yield read(row)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            # One that is of no use must not keep the others, and the whole store, from coming back.
            log.warning("the peer or invite %r is kept but cannot be read: %s", row[0], error)


def _peer(row: tuple[Any, ...]) -> TrustedPeer:
    peer_id, name, since, ours, quota, addresses = row
    return TrustedPeer(
        peer_id=peer_id,
        name=name,
        added_at=since,
        ours=bool(ours),
        quota=msgspec.json.decode(quota, type=Quota),
        addresses=msgspec.json.decode(addresses, type=tuple[str, ...]),
    )


def _invite(row: tuple[Any, ...]) -> Invite:
    invite_id, name, digest, expires_at, ours, quota = row
    return Invite(
        id=invite_id,
        name=name,
        digest=digest,
        expires_at=expires_at,
        ours=bool(ours),
        quota=msgspec.json.decode(quota, type=Quota),
    )
