"""What the request log still has when its process was killed, and when it was told to stop."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WAIT_S = 60
PROMISED_S = 1.0


async def record_under_load(pace):
    """The process under test: tells of each request as soon as it has ended, until SIGTERM."""
    from uia_lab.config import InferenceServiceConfig
    from uia_lab.domain.errors import InferenceError
    from uia_lab.domain.requests import InferenceRequest
    from uia_lab.inference_backend_manager import BackendManager
    from uia_lab.unified_inference_service import UnifiedInferenceService

    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    config = InferenceServiceConfig(enable_hf_server=False, backend_health_checks=False, queue_size=1000)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    manager = service.get_backend_manager()

    async def words(inputs):
        for word in inputs.split():
            await asyncio.sleep(pace)
            yield word

    async def endless():
        await asyncio.Event().wait()

    def broken():
        raise OSError("no luck")

    for model, function in (("words", words), ("endless", endless), ("broken", broken)):
        manager.register_backend(model, "gpu", model, function, capable())

    async def ask(model):
        request = InferenceRequest("text-generation", inputs="a b c", routing=hints(model))
        try:
            await manager.run(request)
        except InferenceError:
            pass
        finally:
            tell(request.id)

    async def load(model):
        while not end.is_set():
            await ask(model)
            await asyncio.sleep(pace)

    await service.start(listen=False)
    assert service.parts["store"]["state"] == "running", service.parts
    tell("ready")
    tasks = [asyncio.create_task(load(model)) for model in ["words"] * 20 + ["broken"] + ["endless"] * 5]
    await end.wait()
    await service.stop()
    await asyncio.gather(*tasks)


def tell(what):
    sys.stdout.write(f"{time.time()} {what}\n")
    sys.stdout.flush()


def capable():
    from uia_lab.domain.backends import BackendCapabilities

    return BackendCapabilities({"text-generation"})


def hints(backend_id):
    from uia_lab.domain.requests import RoutingHints

    return RoutingHints(backend_id=backend_id)


class Recording:
    """A process that records, and what it said."""

    def __init__(self, store, said, pace):
        self.said = said
        with said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(pace)],
                env={**os.environ, "UIA_STORE_PATH": str(store), "PYTHONPATH": str(ROOT)},
                stdout=out,
            )  # fmt: skip

    def told(self):
        """When each request ended, by id."""
        lines = [line.split() for line in self.said.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        return {line[1]: float(line[0]) for line in lines if line[1] != "ready"}

    def until(self, count):
        until = time.monotonic() + WAIT_S
        while len(self.told()) < count:
            assert self.process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)

    def end(self, number):
        at = time.time()
        self.process.send_signal(number)
        status = self.process.wait(WAIT_S)
        return at, status


@pytest.fixture
def start(tmp_path):
    made = []

    def start(store, pace=0.001):
        made.append(Recording(store, tmp_path / f"said-{len(made)}", pace))
        return made[-1]

    yield start
    for recording in made:
        recording.process.kill()
        recording.process.wait(WAIT_S)


def kept(store):
    connection = sqlite3.connect(store)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT id, outcome, backend_id FROM requests").fetchall()
    finally:
        connection.close()
    assert len({row[0] for row in rows}) == len(rows)
    return {request_id: (outcome, backend_id) for request_id, outcome, backend_id in rows}


@pytest.mark.parametrize(("pace", "after"), [(0.001, 1100), (0.1, 60)], ids=["busy", "calm"])
def test_sigkill_costs_a_second_of_records_at_most_and_never_the_file(start, tmp_path, pace, after):
    store = tmp_path / "uia.sqlite3"
    first = start(store, pace)
    first.until(after)
    time.sleep(1.2 * PROMISED_S)
    at, _ = first.end(signal.SIGKILL)
    told, rows = first.told(), kept(store)
    missing = {request_id: at - when for request_id, when in told.items() if request_id not in rows}
    assert max(missing.values(), default=0.0) <= PROMISED_S
    assert len(missing) < len(told)

    second = start(store)
    second.until(50)
    assert second.end(signal.SIGTERM)[1] == 0
    both = kept(store)
    assert second.told().keys() <= both.keys()
    assert told.keys() - both.keys() == missing.keys()
    assert [path.name for path in tmp_path.glob("uia.sqlite3*")] == ["uia.sqlite3"]


def test_sigterm_costs_nothing_even_with_two_processes_on_one_file(start, tmp_path):
    store = tmp_path / "uia.sqlite3"
    both = [start(store), start(store)]
    for recording in both:
        recording.until(300)
    told = {}
    for recording in both:
        assert recording.end(signal.SIGTERM)[1] == 0
        told |= recording.told()
    rows = kept(store)
    assert rows.keys() == told.keys()
    assert {("ok", "words"), ("failed", "broken"), ("cancelled", "endless")} <= set(rows.values())
    assert list(rows.values()).count(("cancelled", "endless")) == 10


async def test_a_store_that_fails_is_reported_and_the_rest_runs(tmp_path, monkeypatch):
    from uia_lab.unified_inference_service import InferenceServiceConfig, UnifiedInferenceService

    (tmp_path / "file").touch()
    monkeypatch.setenv("UIA_STORE_PATH", str(tmp_path / "file" / "uia.sqlite3"))
    async with UnifiedInferenceService(InferenceServiceConfig(enable_hf_server=False)) as service:
        assert service.parts["store"]["state"] == "failed"
        assert "store_path" in service.parts["store"]["reason"]
        assert (service.request_log, service.kept.store) == (None, None)
        manager = service.get_backend_manager()
        manager.register_backend("a", "gpu", "A", lambda: "x", capable())
        assert (await manager.infer("generation", inputs="x")).text == "x"
        manager.set_alias("fast", ["m"])


async def test_in_memory_nothing_is_written_and_no_thread_stays(tmp_path, monkeypatch):
    from uia_lab.unified_inference_service import InferenceServiceConfig, UnifiedInferenceService

    monkeypatch.setenv("UIA_STORE_PATH", str(tmp_path / "kept" / "uia.sqlite3"))
    before = set(threading.enumerate())
    service = UnifiedInferenceService(InferenceServiceConfig(enable_hf_server=False))
    await service.start(listen=False, store=False)
    assert service.parts["store"] == {"state": "running", "reason": "in memory"}
    service.get_backend_manager().register_backend("a", "gpu", "A", lambda: "x", capable())
    await service.get_backend_manager().infer("generation", inputs="x")
    assert [record.outcome for record in await service.request_log.find()] == ["ok"]
    await service.stop()
    assert not (tmp_path / "kept").exists()
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("uia-store")]


if __name__ == "__main__":
    asyncio.run(record_under_load(float(sys.argv[1])))
