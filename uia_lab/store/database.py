"""The one SQLite file: opened, checked, kept aside when it is of no use, written by one thread."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from uia_lab.domain.errors import StoreError
from uia_lab.store.filesystems import network_file_system
from uia_lab.store.schema import MIGRATIONS, is_foreign, migrate, version_of
from uia_lab.store.worker import Step, Worker

T = TypeVar("T")

log = logging.getLogger(__name__)

MEMORY = ":memory:"
BUSY_S = 5.0
CLOSE_S = 5.0
CHECKED_BYTES = 64 * 2**20
WAL_BYTES = 16 * 2**20
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def default_path() -> Path:
    """Where the store is when no setting says otherwise: in Jupyter's data folder."""
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "uia_lab" / "uia.sqlite3"


class Database:
    """A file that one thread writes and another one reads, so that neither an event loop nor a query waits.

    Several processes may have the same file open. What is committed survives the end of the process, however
    it ends; a failure of power may take the last commits, never the file.

    Args:
        path: The file, or ``:memory:``.
        network: Names the network file system a path is on, None for a local one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        network: Callable[[Path], str | None] = network_file_system,
    ) -> None:
        self._network = network
        self.in_memory = os.fspath(path) == MEMORY
        self._file = Path(path).expanduser().absolute()
        self.path = MEMORY if self.in_memory else str(self._file)
        self._writer = Worker("uia-store", self._connect)
        self._reader = self._writer if self.in_memory else Worker("uia-store-reader", self._connect_reader)

    def __repr__(self) -> str:
        return f"<Database {self.path}>"

    def open(self) -> None:
        """Opens the file, made or brought up to date where needed. Takes a while: not on an event loop.

        Raises:
            StoreError: The file or its folder cannot be used; the message says why.
        """
        try:
            self._writer.start()
            if self._reader is not self._writer:
                self._reader.start()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise StoreError(f"store_path {self.path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def write(self, step: Step[T], *, after: float = 0.0) -> Future[T]:
        """Has a step run in the writing thread.

        Args:
            step: Called with the connection; opens its transaction itself.
            after: Seconds until then; what is not due at the end does not run.

        Raises:
            StoreError: The store is closed, or far behind.
        """
        return self._writer.submit(step, after=after)

    def read(self, step: Step[T]) -> Future[T]:
        """Has a query run in the reading thread, on what is committed.

        Raises:
            StoreError: The store is closed, or far behind.
        """
        return self._reader.submit(step)

    def before_close(self, step: Step[None]) -> None:
        """Has a step run in the writing thread as its last one."""
        self._writer.before_close(step)

    def close(self, timeout: float = CLOSE_S) -> None:
        """Writes what was given and ends both threads. Waits: not on an event loop.

        Args:
            timeout: Seconds for the writing thread, after which what it has not written is lost.
        """
        # The reader first: the last connection to go tidies the file, and that one can write.
        if self._reader is not self._writer:
            self._reader.close(timeout)
        self._writer.close(timeout)

    def _connect(self) -> sqlite3.Connection:
        if self.in_memory:
            return self._prepared()
        self._make_file()
        until = time.monotonic() + BUSY_S
        while True:
            number = self._file.stat().st_ino
            try:
                return self._prepared()
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code in _BROKEN:
                    self._move_aside("corrupt", str(error), number)
                # Switching to WAL does not wait for another process that does the same.
                elif code not in _BUSY or time.monotonic() > until:
                    raise
                else:
                    time.sleep(0.05)
            except _Unusable as error:
                self._move_aside(error.reason, str(error), number)

    def _make_file(self) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # Never opened and closed when it exists: that would end SQLite's locks in this process.
            os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return

    def _prepared(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            if not self.in_memory:
                self._check(connection)
                if self._file.stat().st_mode & 0o077:
                    self._file.chmod(0o600)
                self._choose_journal(connection)
                # Commits are safe from a killed process; only a failure of power can undo the last ones.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _choose_journal(self, connection: sqlite3.Connection) -> None:
        kind = self._network(self._file)
        if kind is not None:
            # The write-ahead log needs memory that all its processes share, which no network has.
            mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
            log.warning(
                "%s is on a network file system (%s), whose locks cannot be relied on: one server at a time, "
                "please, or set store_path (UIA_STORE_PATH) to a local disk. Journal: %s",
                self.path,
                kind,
                mode,
            )
            return
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            log.warning("%s: no write-ahead log here (%s); readers and writer wait", self.path, mode)

    def _check(self, connection: sqlite3.Connection) -> None:
        if is_foreign(connection):
            raise StoreError(f"store_path {self.path} is another program's database; name another file")
        version = version_of(connection)
        if version > len(MIGRATIONS):
            raise _Unusable("newer", f"its format is {version}, this uia_lab knows {len(MIGRATIONS)}")
        # All of a large file would take too long at each start.
        if self._file.stat().st_size <= CHECKED_BYTES:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise _Unusable("corrupt", str(found))

    def _move_aside(self, reason: str, why: str, number: int) -> None:
        # Another process may have done the same just now, and this is its new file.
        if self._file.stat().st_ino == number:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            aside = f"{self.path}.{reason}-{stamp}"
            while Path(aside).exists():
                aside += "+"
            for suffix in ("", "-wal", "-shm"):
                if Path(self.path + suffix).exists():
                    Path(self.path + suffix).rename(aside + suffix)
            log.error("%s is %s (%s): it is kept as %s and a new one is made", self.path, reason, why, aside)
        self._make_file()

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        connection.execute("PRAGMA query_only = 1")
        return connection


class _Unusable(Exception):
    """A file that is to be kept, but not to be used."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason
