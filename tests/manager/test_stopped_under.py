"""Backends that are stopped, replaced or broken under a request, and managers whose loop has ended."""

import asyncio
import subprocess
import sys

import psutil
import pytest

from uia_lab.domain.backends import BackendCapabilities, BackendStatus
from uia_lab.domain.errors import BackendFailed, BadRequest, QueueFull
from uia_lab.domain.requests import RoutingHints
from uia_lab.inference_backend_manager import BackendManager

TEXT = BackendCapabilities({"text-generation"})


async def test_unregistering_a_backend_that_starts_moves_its_request_on(manager, scripted):
    class Slow(scripted):
        async def start(self):
            self.reached.set()
            await asyncio.Event().wait()

    slow = Slow("never")
    manager.set_strategy("round_robin")
    manager.register_backend("slow", "gpu", "Slow", slow, weight=100.0)
    manager.register_backend("ok", "gpu", "Ok", scripted("saved"))
    task = asyncio.create_task(manager.infer("generation", inputs="x"))
    probe = asyncio.create_task(manager.probe("slow"))
    await slow.reached.wait()
    manager.unregister_backend("slow")
    assert (await task).text == "saved"
    with pytest.raises(BackendFailed, match="stopped while it was looked at"):
        await probe
    assert manager.totals.cancelled == 0


def test_a_backend_started_on_an_ended_loop_is_started_again_and_stopped(scripted):
    backend = None

    async def once(manager):
        nonlocal backend
        if backend is None:
            backend = scripted("x")
            manager.register_backend("a", "gpu", "A", backend)
        return (await manager.infer("generation", inputs="x")).text

    manager = BackendManager({"enable_health_checks": False})
    assert [asyncio.run(once(manager)) for _ in range(2)] == ["x", "x"]
    asyncio.run(manager.aclose())
    assert (backend.started, backend.stopped) == (2, 1)


TWICE = """
import asyncio
from uia_lab import BackendManager
from uia_lab.backends.local import LocalBackend
from uia_lab.engine.catalogue import Catalogue
from uia_lab.engine.sources import packaged

catalogue = Catalogue()
backend = LocalBackend(packaged(catalogue, "smollm2"))
manager = BackendManager({"enable_health_checks": False})
manager.register_backend("local", "gpu", "Local", backend)

async def ask():
    result = await manager.infer("generation", inputs="Once", parameters={"max_tokens": 2}, deadline_s=60.0)
    print(result.usage.output_tokens, backend.pid)

asyncio.run(ask())
asyncio.run(ask())
asyncio.run(manager.aclose())
"""


def test_a_local_model_answers_on_a_second_loop_and_leaves_no_worker(models):
    """In a process of its own: what belonged to the ended loop is dropped, which Python remarks on."""
    done = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=100, check=True
    )
    answers = [line.split() for line in done.stdout.splitlines()]
    assert [tokens for tokens, _ in answers] == ["2", "2"]
    left = [psutil.Process(int(pid)) for _, pid in answers if psutil.pid_exists(int(pid))]
    assert not psutil.wait_procs(left, 10)[1]


def test_a_function_that_never_returns_does_not_keep_the_process():
    script = (
        "import asyncio, threading\n"
        "from uia_lab import BackendManager, BackendCapabilities\n"
        "async def main():\n"
        "    manager = BackendManager()\n"
        "    manager.register_backend('a', 'gpu', 'A', lambda: threading.Event().wait(),\n"
        "        BackendCapabilities({'text-generation'}))\n"
        "    try:\n"
        "        await manager.infer('generation', inputs='x', deadline_s=0.2)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__)\n"
        "    await manager.aclose()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "DeadlineExceeded\n"


async def test_a_leaked_stop_iteration_is_a_failure_at_once(manager):
    manager.register_backend("a", "gpu", "A", lambda: next(iter([])), TEXT)
    with pytest.raises(BackendFailed, match="raised StopIteration"):
        await manager.infer("generation", inputs="x")


async def test_threads_that_nobody_waits_for_are_still_busy(manager):
    import threading

    release, begun = threading.Event(), threading.Semaphore(0)

    def stuck():
        begun.release()
        release.wait(20)

    manager.register_backend("a", "gpu", "A", stuck, TEXT)
    given_up = [asyncio.create_task(manager.infer("generation", inputs="x")) for _ in range(32)]
    for _ in given_up:
        assert await asyncio.to_thread(begun.acquire, timeout=20)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    with pytest.raises(QueueFull, match="all 32 threads"):
        await manager.infer("generation", inputs="x", deadline_s=5.0)
    release.set()


async def test_an_error_in_tidying_up_costs_no_answer(manager, scripted):
    class Untidy(scripted):
        async def infer(self, request):
            try:
                async for event in super().infer(request):
                    yield event
            finally:
                raise OSError("connection reset")

    manager.register_backend("a", "gpu", "A", Untidy("fine"))
    assert (await manager.infer("generation", inputs="x")).text == "fine"
    report = manager.get_backend_status_report()
    assert (report["total_successful"], report["total_failed"]) == (1, 0)


async def test_a_probe_that_gives_nothing_ends_no_other_checks(scripted, caplog):
    class Wrong(scripted):
        async def probe(self):
            await super().probe()

    manager = BackendManager({"health_check_interval": 0.1})
    good = scripted("x")
    manager.register_backend("wrong", "gpu", "Wrong", Wrong("x"))
    manager.register_backend("good", "gpu", "Good", good)
    info = await manager.probe("wrong")
    assert info.status is BackendStatus.UNHEALTHY
    assert "must return a Probe" in info.reason
    async with asyncio.timeout(10):
        while good.probes < 4:
            await asyncio.sleep(0.01)
    await manager.aclose()


async def test_a_hedge_asks_nobody_with_side_effects(manager, scripted):
    manager.set_strategy("round_robin")
    release = asyncio.Event()
    slow, risky = scripted("slow", release), scripted("risky", side_effects=True)
    manager.register_backend("slow", "gpu", "Slow", slow, weight=100.0)
    manager.register_backend("risky", "gpu", "Risky", risky, weight=50.0)
    manager.register_backend("quick", "gpu", "Quick", scripted("quick"))
    result = await manager.infer("generation", inputs="x", hedge_after_s=0.01)
    assert result.text == "quick"
    assert risky.requests == []
    assert manager.get_backend("risky").metrics.total_requests == 0


async def test_subscribers_end_with_the_manager(manager):
    states = manager.subscribe("status")
    await anext(states)
    waiting = asyncio.create_task(anext(states, None))
    await asyncio.sleep(0)
    await manager.aclose()
    async with asyncio.timeout(10):
        assert await waiting is None


async def test_registering_the_same_adapter_again_does_not_stop_it(manager, scripted):
    backend = scripted("x")
    manager.register_backend("a", "gpu", "A", backend)
    await manager.infer("generation", inputs="x")
    manager.register_backend("a", "gpu", "A", backend, weight=2.0)
    await manager.infer("generation", inputs="x")
    assert (backend.started, backend.stopped) == (1, 0)
    await manager.aclose()
    assert backend.stopped == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline_s", 0),
        ("deadline_s", float("nan")),
        ("deadline_s", "5"),
        ("max_attempts", 0),
        ("max_attempts", -1),
        ("hedge_after_s", -1.0),
        ("priority", "high"),
    ],
)
def test_hints_out_of_range_are_named(name, value):
    with pytest.raises(BadRequest) as caught:
        RoutingHints(**{name: value})
    assert caught.value.param == name
