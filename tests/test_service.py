"""The service builds, starts and stops all of the house."""

import asyncio
import socket

import aiohttp
import psutil
import pytest

from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.errors import NoBackendAvailable
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService


def make(**settings):
    config = InferenceServiceConfig(hf_server_port=0, **settings)
    return UnifiedInferenceService(config, manager=BackendManager(config))


async def test_it_starts_within_a_running_loop_and_leaves_nothing():
    process = psutil.Process()
    before = process.num_fds(), process.num_threads(), len(asyncio.all_tasks())
    for _ in range(2):
        async with make() as service:
            assert service.ready
            url = f"{service.get_hf_server().url}health"
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                assert answer.status == 200
        assert not service.ready
        assert service.get_hf_server() is None
    after = process.num_fds(), process.num_threads(), len(asyncio.all_tasks())
    # The default executor of the loop keeps its threads until the loop ends.
    assert after[0] <= before[0] + 1
    assert after[2] == before[2]
    assert not process.children()


@pytest.mark.parametrize("part", ["_look_at_hardware", "_discover_apis"])
async def test_a_stop_while_it_starts_leaves_nothing(part, monkeypatch):
    service = make()
    begun, free = asyncio.Event(), asyncio.Event()
    real = getattr(service, part)

    async def slow():
        begun.set()
        await free.wait()
        return await real()

    monkeypatch.setattr(service, part, slow)
    starting = asyncio.create_task(service.start())
    async with asyncio.timeout(30):
        await begun.wait()
    stopping = asyncio.create_task(service.stop())
    await asyncio.sleep(0)
    free.set()
    await stopping
    with pytest.raises(NoBackendAvailable, match="stopped"):
        await starting
    assert not service.ready
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-")]


async def test_local_models_are_registered_and_probed():
    async with make() as service:
        manager = service.get_backend_manager()
        names = {backend.backend_id for backend in manager.list_backends("gpu")}
        assert names == {"local-smollm2-135m-instruct", "local-all-minilm-l6-v2"}
        chosen = manager.select_backend_for_task("text-generation")
        assert chosen.name == "SmolLM2-135M-Instruct"
        assert manager.select_backend_for_task("embedding").name == "all-MiniLM-L6-v2"


async def test_a_part_that_cannot_start_is_reported_and_the_rest_runs(caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = InferenceServiceConfig(
            hf_server_port=taken.getsockname()[1],
            default_model="no-such-model",
            enable_libp2p=True,
            libp2p_bootstrap_peers=["/ip4/127.0.0.1/tcp/4001"],
        )
        async with UnifiedInferenceService(config, manager=BackendManager(config)) as service:
            parts = service.parts
            assert service.ready
            assert parts["backend_manager"]["state"] == "running"
            assert parts["http_server"]["state"] == "failed"
            assert "hf_server_port" in parts["http_server"]["reason"]
            assert parts["local_models"]["state"] == "failed"
            assert "no-such-model" in parts["local_models"]["reason"]
            assert parts["libp2p"]["state"] == "failed"
            assert "/ip4/127.0.0.1/tcp/4001" in parts["libp2p"]["reason"]
            assert service.get_p2p_node() is None
    assert "http_server did not start" in caplog.text


async def test_what_is_switched_off_is_off():
    async with make(enable_hf_server=False, hf_enable_hardware_detection=False) as service:
        assert service.get_hf_server() is None
        assert service.parts["local_models"]["state"] == "off"
        assert service.parts["hardware"]["state"] == "off"
        assert service.get_backend_manager().list_backends() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_is_no_warning(host, caplog):
    async with make(hf_server_host=host):
        pass
    assert "reachable" not in caplog.text


async def test_a_wider_bind_warns(caplog):
    async with make(hf_server_host="0.0.0.0"):
        pass
    assert "hf_server_host=0.0.0.0 is reachable from other machines" in caplog.text
