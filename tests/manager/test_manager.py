"""Registration, the whole answer, the stream, the report."""

import contextlib

import pytest

from uia_lab.config import ConfigError
from uia_lab.domain.backends import BackendCapabilities, BackendStatus
from uia_lab.domain.errors import BadRequest, ModelNotFound, NoBackendAvailable
from uia_lab.domain.events import Chunk, Finished, Started
from uia_lab.inference_backend_manager import BackendManager, get_backend_manager

TEXT = BackendCapabilities(supported_tasks={"generation"})


def test_bad_registrations_name_the_field_and_change_nothing():
    manager = BackendManager()
    for field, arguments in {
        "backend_type": ("a", "tpu", "A", print, TEXT),
        "backend_id": ("", "gpu", "A", print, TEXT),
        "name": ("a", "gpu", "", print, TEXT),
        "instance": ("a", "gpu", "A", 7, TEXT),
        "capabilities": ("a", "gpu", "A", print, None),
        "weight": ("a", "gpu", "A", print, TEXT, None, None, 0.0),
        "max_concurrency": ("a", "gpu", "A", print, TEXT, None, None, 1.0, 0),
    }.items():
        with pytest.raises(BadRequest) as caught:
            manager.register_backend(*arguments)
        assert caught.value.param == field
    with pytest.raises(BadRequest, match="text-generation") as caught:
        BackendCapabilities(supported_tasks={"text-genration"})
    with pytest.raises(BadRequest) as caught:
        BackendCapabilities(supported_tasks={"text-generation"}, max_batch_size="8")
    assert caught.value.param == "max_batch_size"
    with pytest.raises(BadRequest, match="needs 'prompt'"):
        manager.register_backend("a", "gpu", "A", lambda prompt: prompt, TEXT)
    assert manager.list_backends() == []


def test_settings_are_checked_and_applied_later():
    with pytest.raises(ConfigError, match="Did you mean 'load_balancing_strategy'"):
        BackendManager({"load_balancing_stratgy": "x"})
    with pytest.raises(BadRequest, match="round_robin"):
        BackendManager({"load_balancing": "quickest"})
    manager = BackendManager({"load_balancing": "round_robin", "queue_size": 7})
    manager.configure({"load_balancing": "least_loaded"})
    assert manager.strategy_name == "least_loaded"
    assert manager.router.queue.size == 7, "what the later configuration does not name stays"
    with pytest.raises(ConfigError):
        manager.configure({"queue_size": -1})
    assert manager.router.queue.size == 7


def test_there_is_one_manager_a_process(monkeypatch):
    monkeypatch.setattr("uia_lab.inference_backend_manager._shared", None)
    first = get_backend_manager({"load_balancing": "round_robin"})
    assert get_backend_manager() is first
    assert get_backend_manager({"load_balancing": "least_loaded"}) is first
    assert first.strategy_name == "least_loaded"


def test_it_works_without_a_loop():
    manager = BackendManager()
    info = manager.register_backend(
        "a", "gpu", "A", lambda inputs: inputs, TEXT, endpoint="http://u:p@127.0.0.1/"
    )
    assert info.status is BackendStatus.UNKNOWN
    assert info.endpoint == "http://127.0.0.1/"
    assert manager.select_backend_for_task("text-generation", "gpt2").backend_id == "a"
    assert manager.select_backend_for_task("text-embedding") is None
    assert manager.drain("a").routable is False
    assert manager.select_backend_for_task("generation") is None
    manager.enable("a")
    assert manager.set_weight("a", 2).weight == 2.0
    assert manager.unregister_backend("a")
    assert not manager.unregister_backend("a")


async def test_a_whole_answer(manager, scripted):
    backend = scripted("Once", " upon")
    manager.register_backend("a", "gpu", "A", backend)
    result = await manager.infer("text-generation", inputs="x", parameters={"seed": 1})
    assert (result.text, result.backend_id, result.finish_reason) == ("Once upon", "a", "stop")
    assert result.model is None
    assert result.usage.output_tokens == 2
    assert [trail.outcome for trail in result.attempts] == ["ok"]
    assert backend.requests[0].parameters == {"seed": 1}
    assert manager.get_backend("a").status is BackendStatus.HEALTHY, "a real success makes it healthy"


async def test_the_model_that_answered_is_told(manager, scripted):
    manager.configure({"default_model": "m"})
    backend = scripted("x", supported_models={"m", "n"})
    manager.register_backend("a", "gpu", "A", backend)
    assert (await manager.infer("generation", inputs="x")).model == "m"
    assert backend.requests[0].model == "m", "the adapter sees the default too"
    manager.register_backend("a", "gpu", "A", scripted("x", supported_models={"only"}))
    assert (await manager.infer("generation", inputs="x")).model == "only"


async def test_a_stream(manager, scripted):
    manager.register_backend("a", "gpu", "A", scripted("Once", " upon"))
    async with manager.stream("text-generation", inputs="x") as stream:
        events = [event async for event in stream]
    assert [type(event) for event in events] == [Started, Chunk, Chunk, Finished]
    assert events[0].backend_id == "a"
    assert events[0].decision["winner"] == "a"


async def test_the_report_adds_up(manager, scripted):
    manager.register_backend("a", "gpu", "A", scripted("x", supported_models={"m"}))
    bad = scripted(ValueError("no"), external=False, supported_models={"n"})
    manager.register_backend("bad", "api", "Bad", bad)
    for _ in range(3):
        await manager.infer("generation", "m", "x")
    with pytest.raises(Exception, match="bad raised ValueError: no"):
        await manager.infer("generation", "n", "x")
    with pytest.raises(ModelNotFound):
        await manager.infer("generation", "unknown", "x")
    report = manager.get_backend_status_report()
    assert report["total_backends"] == 2
    assert report["backends_by_type"] == {"gpu": 1, "api": 1}
    assert report["backends_by_status"] == {"healthy": 1, "degraded": 1}
    assert (report["total_requests"], report["total_successful"]) == (5, 3)
    assert (report["total_failed"], report["total_rejected"], report["in_flight"]) == (1, 1, 0)
    good, bad = report["backends"]
    assert good["metrics"]["successful_requests"] == 3
    assert good["metrics"]["output_tokens"] == 3
    assert good["metrics"]["p50_latency_ms"] > 0
    assert bad["metrics"]["failed_requests"] == 1
    assert "average_latency_ms" not in bad["metrics"], "what has no meaning is absent"
    assert report["supported_tasks"] == ["text-generation"]


async def test_unknown_hints_are_refused(manager, scripted):
    manager.register_backend("a", "gpu", "A", scripted("x"))
    with pytest.raises(BadRequest, match="Did you mean 'backend_id'"):
        await manager.infer("generation", inputs="x", backendid="a")


async def test_a_closed_manager_says_so(scripted):
    manager = BackendManager({"enable_health_checks": False})
    backend = scripted("x")
    manager.register_backend("a", "gpu", "A", backend)
    await manager.infer("generation", inputs="x")
    await manager.aclose()
    await manager.aclose()
    assert backend.stopped == 1
    with pytest.raises(NoBackendAvailable, match="closed"):
        await manager.infer("generation", inputs="x")


async def test_a_replaced_backend_is_stopped(manager, scripted):
    old, new = scripted("old"), scripted("new")
    manager.register_backend("a", "gpu", "A", old)
    assert (await manager.infer("generation", inputs="x")).text == "old"
    manager.register_backend("a", "gpu", "A", new)
    assert (await manager.infer("generation", inputs="x")).text == "new"
    await manager.aclose()
    assert (old.stopped, new.stopped) == (1, 1)


class Last:
    """A strategy of one's own: whoever was registered last."""

    name = "last"

    def compare(self, pool, request):
        return [(-place, entry) for place, entry in enumerate(pool.free())]

    def chosen(self, winner, pool):
        self.winner = winner.backend_id


async def test_a_strategy_of_ones_own():
    async with contextlib.aclosing(BackendManager({"enable_health_checks": False})) as manager:
        able = BackendCapabilities(supported_tasks={"text-generation"})
        for name in ("a", "b", "c"):
            manager.register_backend(name, "gpu", name, lambda inputs: inputs, able)
        strategy = Last()
        manager.set_strategy(strategy)
        assert manager.strategy_name == "last"
        assert manager.explain("text-generation").winner == "c"
        assert (await manager.infer("text-generation", inputs="x")).backend_id == "c"
        assert strategy.winner == "c"
