"""The request log: what became of every request, written in batches off the event loop."""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable

from uia_lab.domain.errors import StoreError
from uia_lab.domain.records import RequestRecord
from uia_lab.store.database import Database
from uia_lab.store.rows import INSERT, SELECT, from_row, to_row
from uia_lab.store.schema import transaction

log = logging.getLogger(__name__)

BUFFER = 10_000
BATCH = 500
WRITE_S = 0.4
RETRY_S = 1.0
COMPLAIN_S = 60.0
PRUNE_S = 60.0
PRUNE_ROWS = 1000
PRUNE_PAUSE_S = 0.05
FRESH_S = 1.0
DAY_S = 86_400.0


class RequestLog:
    """Keeps the records of finished requests for as long, and as many, as it is told.

    A record is in the file half a second after it came, or as soon as there are 500.

    Args:
        database: Where they are kept; open.
        retention_days: For how long.
        max_rows: How many at most; the oldest go first.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        retention_days: float = 30.0,
        max_rows: int = 1_000_000,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        self._database = database
        self._retention_s = retention_days * DAY_S
        self._max_rows = max_rows
        self._clock = clock
        self._lock = threading.Lock()
        self._buffer: deque[RequestRecord] = deque()
        self._asked = False
        self._closed = False
        self._complained_at = -COMPLAIN_S
        self._unpruned = 1
        database.before_close(self._end)
        database.write(self._prune)

    def __repr__(self) -> str:
        return f"<RequestLog in {self._database.path}, {len(self._buffer)} to be written>"

    def record(self, record: RequestRecord) -> None:
        """Takes a record to be written; from any thread, never waits for the file.

        When the file cannot be written for so long that 10,000 wait, the oldest of these are dropped and
        counted in :attr:`dropped`.
        """
        with self._lock:
            lost = self._closed or len(self._buffer) >= BUFFER
            self.dropped += lost
            if lost and not self._closed:
                self._buffer.popleft()
            if not self._closed:
                self._buffer.append(record)
            first, self._asked = not self._asked, True
            full = len(self._buffer) % BATCH == 0
        if lost:
            self._complain("it is closed" if self._closed else "the file does not keep up")
        if first or (full and not lost):
            self._ask(WRITE_S if first else 0.0)

    async def find(
        self,
        since: float | None = None,
        backend: str | None = None,
        outcome: str | None = None,
        principal: str | None = None,
        limit: int = 100,
        until: float | None = None,
    ) -> list[RequestRecord]:
        """Records that match all that is given, those that began last first.

        Args:
            since: Only what began then or later, in seconds since the epoch.
            backend: Only what this backend answered, or tried last.
            outcome: Only ``ok``, ``failed``, ``cancelled`` or ``rejected``.
            principal: Only what this principal asked.
            limit: How many at most.
            until: Only what began then or before, in seconds since the epoch.

        Raises:
            StoreError: The file cannot be read.
        """
        asked = {
            "began_at >= ?": since,
            "began_at <= ?": until,
            "backend_id = ?": backend,
            "outcome = ?": outcome,
        }
        return await self._select(asked | {"principal = ?": principal}, limit)

    async def get(self, request_id: str, principal: str | None = None) -> RequestRecord | None:
        """The record of one request, the latest if the id was used again.

        Args:
            request_id: Its id.
            principal: Who must have asked it; anybody when absent.

        Raises:
            StoreError: The file cannot be read.
        """
        found = await self._select({"id = ?": request_id, "principal = ?": principal}, 1)
        return found[0] if found else None

    async def flush(self) -> None:
        """Waits until what was recorded so far is in the file, as far as that can be written.

        Raises:
            StoreError: The store is closed.
        """
        await asyncio.wrap_future(self._database.write(self._write))

    async def _select(self, conditions: dict[str, str | float | None], limit: int) -> list[RequestRecord]:
        # Who has just seen an answer expects to find it; a file that is stuck gives what it has.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FRESH_S):
                await self.flush()
        given = {text: value for text, value in conditions.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        query = f"{SELECT}{where} ORDER BY began_at DESC, seq DESC LIMIT ?"

        def step(connection: sqlite3.Connection) -> list[RequestRecord]:
            return [from_row(row) for row in connection.execute(query, (*given.values(), limit))]

        return await asyncio.wrap_future(self._database.read(step))

    def _ask(self, after: float) -> None:
        """Has the buffer written; what cannot be asked for now is asked for with the next record."""
        try:
            self._database.write(self._write, after=after)
        except StoreError:
            with self._lock:
                self._asked = False

    def _write(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            self._asked = False
        while batch := self._take():
            try:
                with transaction(connection):
                    for record in batch:
                        self._insert(connection, record)
            except sqlite3.Error as error:
                self._put_back(batch)
                self._complain(str(error))
                return
            self._unpruned += len(batch)

    def _take(self) -> list[RequestRecord]:
        with self._lock:
            return [self._buffer.popleft() for _ in range(min(BATCH, len(self._buffer)))]

    def _insert(self, connection: sqlite3.Connection, record: RequestRecord) -> None:
        try:
            connection.execute(INSERT, to_row(record))
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError) as error:
            self._refuse(record, error)
        except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
            self._refuse(record, error)

    def _refuse(self, record: RequestRecord, error: Exception) -> None:
        """One record that has no place in the table must not keep the others out."""
        with self._lock:
            self.dropped += 1
        self._complain(f"{record.id}: {error}")

    def _put_back(self, batch: list[RequestRecord]) -> None:
        with self._lock:
            room = BUFFER - len(self._buffer)
            kept = batch[max(0, len(batch) - room) :]
            self.dropped += len(batch) - len(kept)
            self._buffer.extendleft(reversed(kept))
            self._asked = True
        self._ask(RETRY_S)

    def _complain(self, why: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_S:
            self._complained_at = now
            log.warning("the request log cannot write: %s (%d records dropped so far)", why, self.dropped)

    def _end(self, connection: sqlite3.Connection) -> None:
        self._write(connection)
        with self._lock:
            self._closed = True
            left = len(self._buffer)
            self.dropped += left
            self._buffer.clear()
        if left:
            log.error("%d records of requests could not be written and are lost", left)

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Deletes a slice of what is too old or too much, and comes again."""
        gone = 0
        try:
            with transaction(connection):
                oldest = self._clock() - self._retention_s
                gone = _delete(connection, "WHERE began_at < ? ORDER BY began_at LIMIT ?", oldest, PRUNE_ROWS)
                if self._unpruned:
                    rows = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
                    over = min(PRUNE_ROWS, max(0, rows - self._max_rows))
                    gone = max(gone, _delete(connection, "ORDER BY seq LIMIT ?", over))
        except sqlite3.Error as error:
            log.warning("old records could not be deleted: %s", error)
        if gone < PRUNE_ROWS:
            self._unpruned = 0
        with contextlib.suppress(StoreError):
            self._database.write(self._prune, after=PRUNE_PAUSE_S if gone >= PRUNE_ROWS else PRUNE_S)


def _delete(connection: sqlite3.Connection, which: str, *values: float) -> int:
    query = f"DELETE FROM requests WHERE seq IN (SELECT seq FROM requests {which})"  # noqa: S608 - constants
    return connection.execute(query, values).rowcount
