"""The scoped keys: their hashes, limits and uses, shared by every server on the file."""

import asyncio
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

import msgspec

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.keys import Key, Limits
from uia_lab.store.database import Database
from uia_lab.store.schema import transaction

log = logging.getLogger(__name__)

_COLUMNS = "id, name, digest, scopes, created_at, limits, expires_at, last_used_at, tokens_used"


class KeyStore:
    """Keys in the store.

    Args:
        database: Where they are kept; open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> list[Key]:
        """All of them, in the order of their creation."""

        def step(connection: sqlite3.Connection) -> list[Key]:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at")  # noqa: S608
            found = []
            for row in rows:
                try:
                    found.append(_key(row))
                except (msgspec.MsgspecError, AttributeError, TypeError, ValueError) as error:
                    # One that is of no use must not keep the others, and the whole store, from coming back.
                    log.warning("the key %r is kept but cannot be read: %s", row[0], error)
            return found

        return await asyncio.wrap_future(self._database.read(step))

    async def add(self, key: Key) -> None:
        """Keeps a key.

        Raises:
            BadRequest: Its name was taken meanwhile, by another server on this file.
            StoreError: It could not be written.
        """
        values = (
            key.id,
            key.name,
            key.digest,
            " ".join(sorted(key.scopes)),
            key.created_at,
            msgspec.json.encode(key.limits).decode(),
            key.expires_at,
            key.last_used_at,
            key.tokens_used,
        )

        def step(connection: sqlite3.Connection) -> None:
            places = ", ".join("?" * len(values))
            try:
                with transaction(connection):
                    connection.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES ({places})", values)  # noqa: S608
            except sqlite3.IntegrityError:
                raise BadRequest(
                    f"there is a key {key.name!r} already; revoke it first", param="name"
                ) from None

        await asyncio.wrap_future(self._database.write(step))

    async def delete(self, key_id: str) -> bool:
        """Forgets a key; False if there was none.

        Raises:
            StoreError: It could not be written.
        """

        def step(connection: sqlite3.Connection) -> bool:
            with transaction(connection):
                return connection.execute("DELETE FROM keys WHERE id = ?", (key_id,)).rowcount > 0

        return await asyncio.wrap_future(self._database.write(step))

    async def charge(self, uses: Mapping[str, tuple[float, int]]) -> None:
        """Adds when keys were last used and what they were charged; those that are gone are passed over.

        Raises:
            StoreError: It could not be written; nothing has changed then.
        """
        rows = [(at, tokens, key_id) for key_id, (at, tokens) in uses.items()]

        def step(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(
                    "UPDATE keys SET last_used_at = nullif(max(coalesce(last_used_at, 0), ?), 0), "
                    "tokens_used = tokens_used + ? WHERE id = ?",
                    rows,
                )

        await asyncio.wrap_future(self._database.write(step))


def _key(row: tuple[Any, ...]) -> Key:
    key_id, name, digest, scopes, created_at, limits, expires_at, last_used_at, tokens_used = row
    return Key(
        id=key_id,
        name=name,
        digest=digest,
        scopes=frozenset(scopes.split()),
        created_at=created_at,
        limits=msgspec.json.decode(limits, type=Limits),
        expires_at=expires_at,
        last_used_at=last_used_at,
        tokens_used=tokens_used,
    )
