"""Tables of names and JSON values, such as the aliases: kept for the next start, written one by one."""

import asyncio
import logging
import sqlite3
from typing import Any, Generic, TypeVar

import msgspec

from uia_lab.domain.descriptions import BackendDescription
from uia_lab.store.database import Database
from uia_lab.store.schema import transaction

log = logging.getLogger(__name__)

V = TypeVar("V")


class ValueStore(Generic[V]):
    """Named values of one kind.

    Args:
        database: Where they are kept; open.
        table: Name of the table.
        columns: Its two columns, name and JSON.
        kind: What a value is.
    """

    def __init__(self, database: Database, table: str, columns: tuple[str, str], kind: Any) -> None:
        self._database = database
        self._kind = kind
        self._table = table
        name, value = columns
        # Names of our own tables, none from outside.
        self._load = f"SELECT {name}, {value} FROM {table} ORDER BY rowid"  # noqa: S608
        self._put = f"REPLACE INTO {table} ({name}, {value}) VALUES (?, ?)"  # noqa: S608
        self._delete = f"DELETE FROM {table} WHERE {name} = ?"  # noqa: S608

    async def load(self) -> dict[str, V]:
        """All of them, those set last at the end."""

        def step(connection: sqlite3.Connection) -> dict[str, V]:
            found = {}
            for name, text in connection.execute(self._load):
                try:
                    found[name] = msgspec.json.decode(text, type=self._kind)
                except msgspec.MsgspecError as error:
                    # One that is of no use must not keep the others from coming back.
                    log.warning("%s %r is kept but cannot be read: %s", self._table, name, error)
            return found

        return await asyncio.wrap_future(self._database.read(step))

    async def put(self, name: str, value: V) -> None:
        """Keeps a value, in place of an earlier one of that name.

        Raises:
            StoreError: It could not be written.
        """
        text = msgspec.json.encode(value).decode()

        def step(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute(self._put, (name, text))

        await asyncio.wrap_future(self._database.write(step))

    async def delete(self, name: str) -> bool:
        """Forgets a value; False if there was none.

        Raises:
            StoreError: It could not be written.
        """

        def step(connection: sqlite3.Connection) -> bool:
            with transaction(connection):
                return connection.execute(self._delete, (name,)).rowcount > 0

        return await asyncio.wrap_future(self._database.write(step))


def alias_store(database: Database) -> ValueStore[tuple[str, ...]]:
    """The aliases, each with its targets.

    In the order they are loaded each can be set again: an alias may not lead to one that was there before it.
    """
    return ValueStore(database, "aliases", ("name", "targets"), tuple[str, ...])


def backend_store(database: Database) -> ValueStore[BackendDescription]:
    """The backends that people registered by their address."""
    return ValueStore(database, "backends", ("id", "description"), BackendDescription)


def setting_store(database: Database) -> ValueStore[dict[str, Any]]:
    """What people changed while a server ran, such as the strategy."""
    return ValueStore(database, "settings", ("name", "value"), dict[str, Any])
