import logging
import os
import sqlite3
import stat
import threading
import time

import pytest

from uia_lab.domain.errors import StoreError
from uia_lab.store.database import Database, default_path
from uia_lab.store.filesystems import network_file_system, of_mounts
from uia_lab.store.schema import APPLICATION_ID, MIGRATIONS, transaction

WAIT_S = 10


def add(name):
    def step(connection):
        with transaction(connection):
            connection.execute("INSERT INTO aliases VALUES (?, '[]')", (name,))

    return step


def names(connection):
    return [name for (name,) in connection.execute("SELECT name FROM aliases")]


def pragma(name):
    return lambda connection: connection.execute(f"PRAGMA {name}").fetchone()[0]


def asides(path, reason):
    return sorted(item for item in path.parent.iterdir() if f".{reason}-" in item.name)


def test_it_is_private_and_survives_its_process_however_that_ends(opened, path):
    database = opened(path)
    database.write(add("a")).result(WAIT_S)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert database.write(pragma("journal_mode")).result(WAIT_S) == "wal"
    assert database.write(pragma("synchronous")).result(WAIT_S) == 1
    assert database.write(pragma("user_version")).result(WAIT_S) == len(MIGRATIONS)


def test_a_file_that_others_can_read_is_closed_to_them(opened, path):
    opened(path).close()
    path.chmod(0o644)
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("in_memory", [True, False])
def test_sqlite_stays_in_its_threads(opened, path, in_memory):
    database = opened(":memory:" if in_memory else path)
    threads = {
        database.write(lambda _: threading.current_thread()).result(WAIT_S).name,
        database.read(lambda _: threading.current_thread()).result(WAIT_S).name,
    }
    assert threads == ({"uia-store"} if in_memory else {"uia-store", "uia-store-reader"})
    database.write(add("a")).result(WAIT_S)
    assert database.read(names).result(WAIT_S) == ["a"]


def test_a_long_query_does_not_hold_up_the_writer(opened, path):
    database = opened(path)
    go = threading.Event()
    query = database.read(lambda connection: go.wait(WAIT_S) and names(connection))
    database.write(add("a")).result(WAIT_S)
    go.set()
    assert query.result(WAIT_S) == ["a"]


def test_readers_cannot_write_and_errors_come_to_who_asked(opened, path):
    database = opened(path)
    with pytest.raises(StoreError, match="readonly"):
        database.read(add("a")).result(WAIT_S)
    with pytest.raises(StoreError, match="no such table"):
        database.write(lambda connection: connection.execute("SELECT * FROM nowhere")).result(WAIT_S)
    with pytest.raises(ZeroDivisionError):
        database.write(lambda _: 1 / 0).result(WAIT_S)
    database.write(add("a")).result(WAIT_S)


def test_a_transaction_is_whole_or_not_at_all(opened, path):
    database = opened(path)

    def broken(connection):
        with transaction(connection):
            connection.execute("INSERT INTO aliases VALUES ('a', '[]')")
            raise KeyError("a")

    with pytest.raises(KeyError):
        database.write(broken).result(WAIT_S)
    assert database.read(names).result(WAIT_S) == []


def test_close_runs_what_was_given_and_drops_what_is_not_due(opened, path):
    database = opened(path)
    late = database.write(add("late"), after=60)
    for number in range(50):
        database.write(add(f"{number:02}"))
    database.before_close(add("last"))
    database.close()
    assert late.cancelled()
    with pytest.raises(StoreError, match="closed"):
        database.write(add("after"))
    assert not path.with_name("uia.sqlite3-wal").exists()
    assert len(opened(path).read(names).result(WAIT_S)) == 51


def test_steps_run_when_they_are_due(opened, path):
    database = opened(path)
    done = []
    later = database.write(lambda _: done.append("later"), after=0.05)
    database.write(lambda _: done.append("now")).result(WAIT_S)
    assert done == ["now"]
    later.result(WAIT_S)


def test_close_has_a_deadline(opened, path, caplog):
    database = opened(path)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    stuck = database.write(lambda connection: connection.execute(endless).fetchone())
    before = time.monotonic()
    database.close(0.2)
    assert time.monotonic() - before < WAIT_S
    assert "did not end within" in caplog.text
    with pytest.raises(StoreError, match="interrupted"):
        stuck.result(WAIT_S)


def test_a_writer_that_is_far_behind_refuses(opened, path, monkeypatch):
    monkeypatch.setattr("uia_lab.store.worker.MOST_JOBS", 2)
    database = opened(path)
    go = threading.Event()
    running = threading.Event()
    first = database.write(lambda _: running.set() or go.wait(WAIT_S))
    assert running.wait(WAIT_S)
    waiting = [database.write(add(name)) for name in "ab"]
    with pytest.raises(StoreError, match="behind"):
        database.write(add("c"))
    go.set()
    for future in (first, *waiting):
        future.result(WAIT_S)


def test_a_newer_file_is_kept_aside(opened, path, caplog):
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE from_the_future (x)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with caplog.at_level(logging.ERROR):
        database = opened(path)
    (aside,) = asides(path, "newer")
    assert str(aside) in caplog.text
    assert "format is 99" in caplog.text
    assert database.read(names).result(WAIT_S) == []
    kept = sqlite3.connect(aside)
    assert kept.execute("SELECT count(*) FROM from_the_future").fetchone() == (0,)
    kept.close()


@pytest.mark.parametrize("damage", ["text", "torn", "header"])
def test_a_corrupt_file_is_kept_aside_and_never_overwritten(opened, path, caplog, damage):
    database = opened(path)
    for number in range(200):
        database.write(add(f"{number:04}" * 50))
    database.close()
    whole = path.read_bytes()
    if damage == "text":
        broken = b"these are my notes\n" * 100
    elif damage == "torn":
        broken = whole[: len(whole) // 2]
    else:
        broken = whole[:4096] + os.urandom(len(whole) - 4096)
    for count in (1, 2):
        path.write_bytes(broken)
        database = opened(path)
        assert database.read(names).result(WAIT_S) == []
        database.close()
        assert len(asides(path, "corrupt")) == count
    assert all(aside.read_bytes() == broken for aside in asides(path, "corrupt"))
    assert "it is kept as" in caplog.text


def test_another_programs_database_is_left_alone(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    path.chmod(0o644)
    with pytest.raises(StoreError, match="another program's database"):
        Database(path).open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()


@pytest.mark.parametrize("hindrance", ["folder", "file"])
def test_a_path_that_cannot_be_used_is_named(tmp_path, hindrance):
    path = tmp_path / "x" / "uia.sqlite3"
    if hindrance == "folder":
        path.mkdir(parents=True)
    else:
        path.parent.write_text("not a folder")
    database = Database(path)
    with pytest.raises(StoreError, match=str(path)):
        database.open()
    database.close()


def test_migrations_build_on_one_another_and_happen_whole_or_not_at_all(opened, path, monkeypatch):
    database = opened(path)
    database.write(add("a")).result(WAIT_S)
    database.close()
    more = (*MIGRATIONS, ("ALTER TABLE aliases ADD note TEXT", "CREATE TABLE extra (x)"))
    broken = (*more, ("CREATE TABLE half (x)", "nonsense"))
    for module in ("database", "schema"):
        monkeypatch.setattr(f"uia_lab.store.{module}.MIGRATIONS", broken)
    with pytest.raises(StoreError, match="nonsense"):
        opened(path)
    for module in ("database", "schema"):
        monkeypatch.setattr(f"uia_lab.store.{module}.MIGRATIONS", more)
    database = opened(path)
    assert database.read(lambda c: c.execute("SELECT name, note FROM aliases").fetchall()).result(WAIT_S) == [
        ("a", None)
    ]
    assert database.read(pragma("user_version")).result(WAIT_S) == len(more)


def test_two_open_one_fresh_file_at_once(path):
    databases = [Database(path) for _ in range(4)]
    threads = [threading.Thread(target=database.open) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    try:
        for number, database in enumerate(databases):
            database.write(add(str(number))).result(WAIT_S)
        assert sorted(databases[0].read(names).result(WAIT_S)) == ["0", "1", "2", "3"]
    finally:
        for database in databases:
            database.close()
    assert not asides(path, "corrupt")


def test_the_default_path_is_in_jupyters_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    assert default_path() == tmp_path / "uia_lab" / "uia.sqlite3"


def test_on_a_network_file_system_the_log_is_rolled_back_and_said_so(path, caplog):
    database = Database(path, network=lambda _: "nfs4")
    database.open()
    assert database.write(pragma("journal_mode")).result(WAIT_S) == "delete"
    database.write(add("a")).result(WAIT_S)
    assert database.read(names).result(WAIT_S) == ["a"]
    database.close()
    assert "nfs4" in caplog.text
    assert "store_path" in caplog.text
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_which_file_system_a_path_is_on(tmp_path):
    here = str(tmp_path)
    mounts = [("/", "ext4"), (here, "nfs4"), (here + "/local", "xfs"), (here + "/lo", "cifs")]
    assert of_mounts(tmp_path / "a" / "b", mounts) == "nfs4"
    assert of_mounts(tmp_path / "local" / "b", mounts) is None
    assert of_mounts(tmp_path.parent, mounts) is None
    (tmp_path / "link").symlink_to(tmp_path / "lo")
    assert of_mounts(tmp_path / "link" / "x", mounts) == "cifs"
    assert network_file_system(tmp_path) is None


def test_a_store_of_an_older_version_is_brought_up_to_date(path, opened):
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute("INSERT INTO aliases VALUES ('old', '[\"m\"]')")
    connection.execute("PRAGMA user_version = 1")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.close()
    database = opened(path)
    assert database.read(names).result(WAIT_S) == ["old"]
    assert database.read(lambda c: c.execute("SELECT * FROM keys").fetchall()).result(WAIT_S) == []
