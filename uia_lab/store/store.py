"""Everything that outlives a server, in one file: opened, and closed, as one thing."""

import asyncio
from pathlib import Path

from uia_lab.store.database import Database
from uia_lab.store.keys import KeyStore
from uia_lab.store.peers import PeerStore
from uia_lab.store.request_log import RequestLog
from uia_lab.store.values import alias_store, backend_store, setting_store


class Store:
    """The request log, keys, peers, aliases, backends and settings of one file.

    Args:
        database: The file; open.
        retention_days: How long the log keeps a request.
        max_rows: How many requests the log keeps.
    """

    def __init__(self, database: Database, retention_days: float, max_rows: int) -> None:
        self._database = database
        self.request_log = RequestLog(database, retention_days, max_rows)
        self.keys = KeyStore(database)
        self.peers = PeerStore(database)
        self.aliases = alias_store(database)
        self.backends = backend_store(database)
        self.settings = setting_store(database)

    def __repr__(self) -> str:
        return f"<Store {self.where}>"

    @property
    def where(self) -> str:
        """Where it is, in words."""
        return "in memory" if self._database.in_memory else self._database.path

    @property
    def lasting(self) -> bool:
        """Whether it outlives the process."""
        return not self._database.in_memory

    @classmethod
    async def open(cls, path: str | Path, retention_days: float = 30.0, max_rows: int = 1_000_000) -> "Store":
        """Opens a file, or ``:memory:``; made or brought up to date where needed.

        Args:
            path: Where it is.
            retention_days: How long the log keeps a request.
            max_rows: How many requests the log keeps.

        Raises:
            StoreError: It cannot be used; the message says why.
        """
        database = Database(path)
        try:
            await asyncio.to_thread(database.open)
        except BaseException:
            await asyncio.to_thread(database.close)
            raise
        return cls(database, retention_days, max_rows)

    async def close(self) -> None:
        """Writes what was given, and closes the file."""
        await asyncio.to_thread(self._database.close)
