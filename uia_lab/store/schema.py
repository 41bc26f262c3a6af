"""The tables, as the ordered steps that made them, and who a file belongs to."""

import contextlib
import sqlite3
from collections.abc import Iterator

# Tells our files from other programs' databases.
APPLICATION_ID = 0x55494131

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE requests (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL,
            instance_id TEXT NOT NULL,
            principal TEXT NOT NULL,
            task TEXT NOT NULL,
            model TEXT,
            stream INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            began_at REAL NOT NULL,
            latency_s REAL NOT NULL,
            error TEXT,
            message TEXT,
            backend_id TEXT,
            queued_s REAL NOT NULL,
            first_token_s REAL,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            estimated INTEGER NOT NULL,
            chunks INTEGER NOT NULL,
            input_bytes INTEGER NOT NULL,
            input_sha256 TEXT NOT NULL,
            decision TEXT NOT NULL,
            attempts TEXT NOT NULL,
            inputs TEXT,
            result TEXT
        )""",
        # Callers may choose ids, so one may come twice.
        "CREATE INDEX requests_by_id ON requests (id)",
        "CREATE INDEX requests_by_time ON requests (began_at)",
        "CREATE INDEX requests_by_backend ON requests (backend_id, began_at)",
        "CREATE INDEX requests_by_outcome ON requests (outcome, began_at)",
        "CREATE INDEX requests_by_principal ON requests (principal, began_at)",
        "CREATE TABLE aliases (name TEXT PRIMARY KEY, targets TEXT NOT NULL)",
    ),
    (
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            digest BLOB NOT NULL UNIQUE,
            scopes TEXT NOT NULL,
            created_at REAL NOT NULL,
            limits TEXT NOT NULL,
            expires_at REAL,
            last_used_at REAL,
            tokens_used INTEGER NOT NULL
        )""",
        "CREATE TABLE backends (id TEXT PRIMARY KEY, description TEXT NOT NULL)",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
    (
        """CREATE TABLE peers (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            since REAL NOT NULL,
            ours INTEGER NOT NULL,
            quota TEXT NOT NULL,
            addresses TEXT NOT NULL
        )""",
        """CREATE TABLE invites (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            digest BLOB NOT NULL UNIQUE,
            expires_at REAL NOT NULL,
            ours INTEGER NOT NULL,
            quota TEXT NOT NULL
        )""",
    ),
)
"""A step, once published, is never changed; ``PRAGMA user_version`` counts those a file has."""


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction, undone by an exception."""
    # IMMEDIATE takes the lock here, where waiting for another process is possible, not in the middle.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Some errors, such as a full disk, have rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def version_of(connection: sqlite3.Connection) -> int:
    """How many steps a file has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def is_foreign(connection: sqlite3.Connection) -> bool:
    """Whether the file is another program's database; an empty one is nobody's."""
    # One snapshot: another process may be making its tables just now.
    connection.execute("BEGIN")
    try:
        used = connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
        return used and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID
    finally:
        connection.execute("ROLLBACK")


def migrate(connection: sqlite3.Connection) -> None:
    """Takes the steps that a file lacks, all or none."""
    if version_of(connection) == len(MIGRATIONS):
        return
    with transaction(connection):
        # Another process may have taken them while this one waited for the lock.
        for statements in MIGRATIONS[version_of(connection) :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
