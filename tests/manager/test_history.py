"""The last quarter of an hour: what each second says, what is kept, and that nothing is left running."""

import asyncio
import random

import pytest

from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.manager.history import KEPT, History


@pytest.fixture
async def told(scripted):
    """A manager with one backend that serves and one that fails, by a clock that stands still."""
    manager = BackendManager({"enable_health_checks": False}, clock=lambda: 100.0, rng=random.Random(5))
    manager.register_backend("good", "gpu", "Good", scripted("x", "y", supported_models={"good"}))
    manager.register_backend(
        "bad", "gpu", "Bad", scripted(BackendFailed("out of " + "paper" * 200), supported_models={"bad"})
    )
    now = [1000.0]
    history = History(manager, manager.loops.call, lambda: now[0])

    async def second(*models):
        for model in models:
            try:
                await manager.infer("generation", model, inputs="x")
            except InferenceError:
                continue
        now[0] += 1
        history.take()

    yield manager, history, second
    await manager.aclose()


async def test_each_second_says_what_ended_in_it(told):
    _, history, second = told
    await second("good", "good", "bad")
    await second()
    first, idle = history.read()["samples"]
    assert (first["number"], first["at"], first["in_flight"], first["waiting"]) == (1, 1001.0, 0, 0)
    assert first["backends"] == {"good": [2, 0, 0, 4, 0.0], "bad": [0, 1, 0, 0, None]}
    assert (first["p50_ms"], first["p95_ms"]) == (0.0, 0.0)
    assert idle["backends"] == {}
    assert idle["p50_ms"] == 0.0, "the percentiles are over ten seconds"
    for _ in range(9):
        await second()
    assert "p50_ms" not in history.read(limit=1)["samples"][0]


async def test_only_what_is_new_is_told_again(told):
    _, history, second = told
    for _ in range(5):
        await second()
    told_now = history.read()
    assert [sample["number"] for sample in told_now["samples"]] == [1, 2, 3, 4, 5]
    assert told_now["taken"] == 5
    assert history.read(after=5)["samples"] == []
    assert [sample["number"] for sample in history.read(after=3)["samples"]] == [4, 5]
    assert [sample["number"] for sample in history.read(limit=2)["samples"]] == [4, 5]
    assert history.read(after=10**9)["samples"] == []


async def test_it_is_bounded(told):
    _, history, second = told
    for _ in range(KEPT + 50):
        await second()
    samples = history.read()["samples"]
    assert len(samples) == KEPT
    assert samples[-1]["number"] == KEPT + 50


async def test_what_is_under_way_is_seen_and_what_was_before_is_not(scripted, manager):
    release = asyncio.Event()
    backend = scripted(release, "x")
    manager.register_backend("a", "gpu", "A", scripted("x"))
    await manager.infer("generation", inputs="x")
    manager.register_backend("b", "gpu", "B", backend, max_concurrency=1)
    manager.drain("a")
    history = History(manager, manager.loops.call)
    history.start()
    history.start()
    waiting = [asyncio.create_task(manager.infer("generation", inputs="x")) for _ in range(3)]
    await backend.reached.wait()
    history.take()
    (sample,) = history.read()["samples"]
    assert (sample["in_flight"], sample["waiting"]) == (3, 2)
    assert sample["backends"] == {"b": [0, 0, 1, 0, None]}
    release.set()
    await asyncio.gather(*waiting)
    await history.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "uia-history"]


async def test_it_takes_samples_by_itself(manager, scripted):
    history = History(manager, manager.loops.call)
    history.start()
    async with asyncio.timeout(20):
        while not history.read()["samples"]:
            await asyncio.sleep(0.05)
    await history.stop()


async def test_failing_and_coming_back_is_marked_and_remembered(told):
    manager, history, second = told
    while manager.get_backend("bad").status != "unhealthy":
        await second("bad")
    marks = [item["status"] for item in history.read()["transitions"] if item["backend_id"] == "bad"]
    assert marks[-1] == "unhealthy"
    troubles = manager.troubles("bad")
    assert troubles["errors"][0]["code"] == "backend_failed"
    assert troubles["errors"][0]["message"].startswith("out of paper")
    assert len(troubles["errors"][0]["message"]) <= 500
    assert troubles["transitions"][0]["status"] == "unhealthy"
    assert troubles["transitions"][-1]["was"] == "unknown"
    assert manager.troubles("good")["errors"] == []
