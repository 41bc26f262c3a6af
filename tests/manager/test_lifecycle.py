"""Started before use, probed while it lives, stopped at the end."""

import asyncio

from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import BackendFailed
from uia_lab.inference_backend_manager import BackendManager


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_background_checks_find_a_backend_and_what_becomes_of_it(scripted):
    manager = BackendManager({"health_check_interval": 0.1})
    backend = scripted("x")
    manager.register_backend("a", "gpu", "A", backend)
    await manager.probe("a")
    await until(lambda: backend.probes >= 3)
    assert manager.get_backend("a").status is BackendStatus.HEALTHY
    backend.status = BackendStatus.OFFLINE
    await until(lambda: manager.get_backend("a").status is BackendStatus.OFFLINE)
    backend.status = BackendStatus.HEALTHY
    await until(lambda: manager.get_backend("a").status is BackendStatus.HEALTHY)
    assert backend.started == 1
    manager.unregister_backend("a")
    await until(lambda: backend.stopped == 1)
    await manager.aclose()
    assert len(asyncio.all_tasks()) == 1, "no task is left behind"


async def test_concurrent_probes_are_one(manager, scripted):
    backend = scripted("x")
    manager.register_backend("a", "gpu", "A", backend)
    await asyncio.gather(*(manager.probe("a") for _ in range(5)))
    assert (backend.started, backend.probes) == (1, 1)


async def test_a_probe_that_hangs_or_raises_is_a_finding(manager, scripted, monkeypatch, caplog):
    monkeypatch.setattr("uia_lab.manager.lifecycle.PROBE_TIMEOUT_S", 0.1)

    class Hanging(scripted):
        async def probe(self):
            await asyncio.Event().wait()

    class Raising(scripted):
        async def probe(self):
            raise KeyError("bug")

    manager.register_backend("hangs", "gpu", "H", Hanging())
    manager.register_backend("raises", "gpu", "R", Raising())
    hangs, raises = await asyncio.gather(manager.probe("hangs"), manager.probe("raises"))
    assert hangs.status is BackendStatus.OFFLINE
    assert "no answer to a probe" in hangs.reason
    assert raises.status is BackendStatus.UNHEALTHY
    assert "KeyError" in raises.reason
    assert "probe of backend raises failed" in caplog.text


async def test_a_backend_that_cannot_start_is_tried_again(manager, scripted):
    class Late(scripted):
        async def start(self):
            await super().start()
            if self.started == 1:
                raise BackendFailed("not yet")

    backend = Late("x")
    manager.register_backend("a", "gpu", "A", backend)
    info = await manager.probe("a")
    assert (info.status, info.reason) == (BackendStatus.OFFLINE, "not yet")
    info = await manager.probe("a")
    assert info.status is BackendStatus.HEALTHY


async def test_a_backend_that_does_not_stop_keeps_nobody(manager, scripted, monkeypatch, caplog):
    monkeypatch.setattr("uia_lab.manager.lifecycle.STOP_TIMEOUT_S", 0.1)

    class Stuck(scripted):
        async def stop(self):
            await asyncio.Event().wait()

    good = scripted("x")
    manager.register_backend("stuck", "gpu", "S", Stuck("x"))
    manager.register_backend("good", "gpu", "G", good)
    await manager.probe("stuck")
    await manager.probe("good")
    await manager.aclose()
    assert good.stopped == 1
    assert "backend stuck did not stop" in caplog.text
