"""The aliases that people have set, kept for the next start."""

import asyncio
import sqlite3
from collections.abc import Sequence

import msgspec

from uia_lab.store.database import Database
from uia_lab.store.schema import transaction


class AliasStore:
    """Names and their ordered targets.

    Args:
        database: Where they are kept; open.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> dict[str, tuple[str, ...]]:
        """All of them, those set last at the end.

        In that order each can be set again: an alias may not lead to one that was there before it.
        """

        def step(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
            rows = connection.execute("SELECT name, targets FROM aliases ORDER BY rowid")
            return {name: msgspec.json.decode(text, type=tuple[str, ...]) for name, text in rows}

        return await asyncio.wrap_future(self._database.read(step))

    async def put(self, name: str, targets: Sequence[str]) -> None:
        """Keeps an alias, in place of an earlier one of that name.

        Raises:
            StoreError: It could not be written.
        """
        text = msgspec.json.encode(list(targets)).decode()

        def step(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute("REPLACE INTO aliases (name, targets) VALUES (?, ?)", (name, text))

        await asyncio.wrap_future(self._database.write(step))

    async def delete(self, name: str) -> bool:
        """Forgets an alias; False if there was none.

        Raises:
            StoreError: It could not be written.
        """

        def step(connection: sqlite3.Connection) -> bool:
            with transaction(connection):
                return connection.execute("DELETE FROM aliases WHERE name = ?", (name,)).rowcount > 0

        return await asyncio.wrap_future(self._database.write(step))
