"""llama.cpp and transformers behind one model's name: balanced, killed in the middle, back by themselves."""

import asyncio
import os
import signal

import pytest

from tests.engine import tiny
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.errors import BackendFailed, NoBackendAvailable, StreamInterrupted
from uia_lab.domain.events import Chunk
from uia_lab.engine.catalogue import Catalogue
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.local_models import LoadOptions, LocalModels

NAME = "SmolLM2-135M-Instruct"
IDS = {"local-smollm2-135m-instruct", "local-smollm2-135m-instruct-transformers"}


@pytest.fixture
async def house(models, tmp_path):
    """Both engines loaded; where the conversion would be lies a tiny model with random weights."""
    (tmp_path / NAME).symlink_to(models.path(NAME).parent)
    folder = tmp_path / f"{NAME}-safetensors"
    folder.mkdir()
    tiny.llama(folder)
    config = InferenceServiceConfig(
        load_balancing_strategy="round_robin",
        backend_health_check_interval=0.2,
        hf_auto_discover_skills=False,
    )
    manager = BackendManager(config)
    local = LocalModels(manager, config, Catalogue(tmp_path))
    local.offer()
    await asyncio.gather(
        local.load("smollm2"), local.load("smollm2", options=LoadOptions(engine="transformers"))
    )
    yield manager, local
    await local.close()
    await manager.aclose()


async def test_both_serve_and_a_killed_one_comes_back(house):
    manager, local = house
    ask = {"max_tokens": 4, "temperature": 0}
    results = await asyncio.gather(*(manager.infer("generation", NAME, "the cat", ask) for _ in range(8)))
    assert {result.backend_id for result in results} == IDS
    by_id = {item["backend_id"]: item for item in await local.listed()}
    assert {item["engine"] for item in by_id.values() if item["model_id"] == NAME} == {
        "llamacpp",
        "transformers",
    }

    target = "local-smollm2-135m-instruct-transformers"
    long = {"max_tokens": 200, "temperature": 0}
    async with manager.stream("generation", NAME, "the cat", long, backend_id=target) as stream:
        async for event in stream:
            if isinstance(event, Chunk):
                break
        os.kill(by_id[target]["pid"], signal.SIGKILL)
        with pytest.raises(StreamInterrupted):
            async for _ in stream:
                pass
    # The other one serves meanwhile.
    assert (await manager.infer("generation", NAME, "the cat", ask)).text
    result = None
    async with asyncio.timeout(90):
        while result is None:
            try:
                result = await manager.infer("generation", NAME, "the cat", ask, backend_id=target)
            except (BackendFailed, NoBackendAvailable):
                # Within its back-off it says that it died, and is not started for everybody who asks.
                await asyncio.sleep(0.2)
    assert result.backend_id == target
    report = manager.get_backend_status_report()
    assert report["in_flight"] == 0
    assert report["total_requests"] == sum(
        report[f"total_{outcome}"] for outcome in ("successful", "failed", "cancelled", "rejected")
    )
