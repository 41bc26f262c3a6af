"""Databases that are closed at the end, and records to put into them."""

import threading

import pytest

from uia_lab.domain.events import Attempted
from uia_lab.domain.records import RequestRecord
from uia_lab.store.database import Database


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kept" / "uia.sqlite3"


@pytest.fixture
def opened():
    """Opens databases; no thread of theirs is left at the end."""
    before = set(threading.enumerate())
    made = []

    def open_at(path):
        made.append(Database(path))
        made[-1].open()
        return made[-1]

    yield open_at
    for database in made:
        database.close()
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("uia-store")]


@pytest.fixture
def make_record():
    def make(number=0, **fields):
        return RequestRecord(**{
            "id": f"req-{number}",
            "instance_id": "uia-test",
            "principal": "ann",
            "task": "text-generation",
            "model": "m",
            "stream": True,
            "outcome": "ok",
            "began_at": 1000.0 + number,
            "latency_s": 0.5,
            "backend_id": "a",
            "first_token_s": 0.25,
            "input_tokens": 3,
            "decision": {"strategy": "round_robin", "winner": "a"},
            "attempts": (Attempted("b", "failed", 1.5, "backend_failed", "boom"), Attempted("a", "ok", 2.5)),
        } | fields)  # fmt: skip

    return make
