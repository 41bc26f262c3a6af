import asyncio
import sqlite3
import threading
import time

import pytest

from uia_lab.store.request_log import BUFFER, DAY_S, RequestLog
from uia_lab.store.rows import KEPT_BYTES

WAIT_S = 10


def count(database):
    return database.read(lambda c: c.execute("SELECT count(*) FROM requests").fetchone()[0]).result(WAIT_S)


def make_log(database, **options):
    return RequestLog(database, **{"clock": lambda: 2000.0} | options)


@pytest.mark.parametrize("where", ["memory", "file"])
async def test_a_record_comes_back_as_it_was(opened, path, make_record, where):
    log = make_log(opened(":memory:" if where == "memory" else path))
    whole = make_record(inputs=[{"role": "user", "content": "hi"}], result="Once", queued_s=0.125)
    bare = make_record(1, model=None, backend_id=None, outcome="rejected", decision={}, attempts=())
    log.record(whole)
    log.record(bare)
    assert await log.get("req-0") == whole
    assert await log.get("req-1") == bare
    assert await log.get("req-2") is None


async def test_find(opened, path, make_record):
    log = make_log(opened(path))
    for number in range(8):
        log.record(
            make_record(
                number,
                backend_id="ab"[number % 2],
                outcome="ok" if number < 6 else "failed",
                principal="ann" if number % 4 else "ben",
            )
        )

    async def ids(**asked):
        return [int(record.id[4:]) for record in await log.find(**asked)]

    assert await ids() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert await ids(limit=2) == [7, 6]
    assert await ids(since=1006.0) == [7, 6]
    assert await ids(backend="a") == [6, 4, 2, 0]
    assert await ids(outcome="failed") == [7, 6]
    assert await ids(principal="ben") == [4, 0]
    assert await ids(backend="a", outcome="ok", principal="ann", since=1001.0) == [2]
    assert await log.get("req-4", "ann") is None
    assert (await log.get("req-4", "ben")).id == "req-4"


async def test_of_an_id_that_came_twice_the_latest_is_given(opened, path, make_record):
    log = make_log(opened(path))
    for outcome in ("failed", "ok"):
        log.record(make_record(outcome=outcome))
    assert (await log.get("req-0")).outcome == "ok"
    assert len(await log.find()) == 2


async def test_it_is_written_soon_by_itself_and_at_once_when_there_is_much(opened, path, make_record):
    database = opened(path)
    log = make_log(database)
    before = time.monotonic()
    log.record(make_record())
    async with asyncio.timeout(WAIT_S):
        while not count(database):
            await asyncio.sleep(0.01)
    assert time.monotonic() - before >= 0.3, "written one by one, not in batches"
    for number in range(500):
        log.record(make_record(number))
    async with asyncio.timeout(WAIT_S):
        while count(database) < 501:
            await asyncio.sleep(0.01)


async def test_close_writes_the_rest(opened, path, make_record):
    database = opened(path)
    log = make_log(database)
    for number in range(1234):
        log.record(make_record(number))
    await asyncio.to_thread(database.close)
    log.record(make_record())
    assert log.dropped == 1
    assert count(opened(path)) == 1234


async def test_a_stuck_file_blocks_nobody_and_costs_the_oldest(opened, path, make_record, caplog):
    database = opened(path)
    log = make_log(database)
    await log.flush()
    go = threading.Event()
    database.write(lambda _: go.wait(WAIT_S))
    before = time.monotonic()
    for number in range(BUFFER + 5):
        log.record(make_record(number))
    assert time.monotonic() - before < 5
    assert log.dropped == 5
    assert caplog.text.count("records dropped") == 1
    go.set()
    await log.flush()
    assert count(database) == BUFFER
    assert await log.get("req-4") is None
    assert await log.get("req-5") is not None


async def test_what_could_not_be_written_is_tried_again(opened, path, make_record, caplog, monkeypatch):
    monkeypatch.setattr("uia_lab.store.request_log.RETRY_S", 0.05)
    database = opened(path)
    log = make_log(database)
    database.write(lambda c: c.execute("ALTER TABLE requests RENAME TO away")).result(WAIT_S)
    log.record(make_record())
    await log.flush()
    assert "cannot write: no such table" in caplog.text
    database.write(lambda c: c.execute("ALTER TABLE away RENAME TO requests")).result(WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while not count(database):
            await asyncio.sleep(0.01)
    assert log.dropped == 0


async def test_a_record_with_no_place_in_the_table_costs_only_itself(opened, path, make_record):
    log = make_log(opened(path))
    log.record(make_record(0, input_tokens=2**70))
    log.record(make_record(1, task=object()))
    log.record(make_record(2, model="lone \ud800", inputs={"a": "lone \ud800", "n": 2**70, 1: float("nan")}))
    log.record(make_record(3, inputs="x" * 2 * KEPT_BYTES, result={"not json": {1, 2}, "bytes": b"x"}))
    found = {record.id: record for record in await log.find()}
    assert set(found) == {"req-2", "req-3"}
    assert log.dropped == 2
    assert found["req-2"].model == "lone ?"
    assert len(found["req-3"].inputs) < KEPT_BYTES + 100


async def test_old_records_and_too_many_go_in_slices(opened, path, make_record, monkeypatch):
    monkeypatch.setattr("uia_lab.store.request_log.PRUNE_ROWS", 10)
    monkeypatch.setattr("uia_lab.store.request_log.PRUNE_PAUSE_S", 0.001)
    database = opened(path)
    log = make_log(database)
    for number in range(30):
        log.record(make_record(number, began_at=2000.0 - 5 * DAY_S))
    for number in range(30, 100):
        log.record(make_record(number))
    await log.flush()
    pruned = make_log(database, retention_days=4, max_rows=25)
    async with asyncio.timeout(WAIT_S):
        while count(database) > 25:
            await asyncio.sleep(0.005)
    assert [record.id for record in await pruned.find()] == [f"req-{number}" for number in range(99, 74, -1)]


async def test_nothing_of_it_runs_on_the_loop(opened, path, make_record, monkeypatch):
    database = opened(path)
    here = threading.get_ident()
    used = set()
    database.write(lambda c: c.set_trace_callback(lambda _: used.add(threading.get_ident()))).result(WAIT_S)
    database.read(lambda c: c.set_trace_callback(lambda _: used.add(threading.get_ident()))).result(WAIT_S)
    log = make_log(database)
    log.record(make_record())
    await log.find()
    assert len(used) == 2
    assert here not in used


async def test_queries_use_the_indexes(opened, path):
    database = opened(path)
    for condition, index in (
        ("id = 'x'", "by_id"),
        ("backend_id = 'a'", "by_backend"),
        ("outcome = 'ok'", "by_outcome"),
        ("principal = 'ann'", "by_principal"),
        ("began_at >= 1", "by_time"),
    ):
        query = f"EXPLAIN QUERY PLAN SELECT * FROM requests WHERE {condition} ORDER BY began_at DESC LIMIT 5"
        plan = database.read(lambda c, query=query: c.execute(query).fetchall()).result(WAIT_S)
        assert index in str(plan), plan


async def test_two_processes_may_share_the_file(opened, path, make_record):
    logs = [make_log(opened(path)) for _ in range(2)]
    for number in range(600):
        logs[number % 2].record(make_record(number))
    await asyncio.gather(*(log.flush() for log in logs))
    assert len(await logs[0].find(limit=1000)) == 600
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
