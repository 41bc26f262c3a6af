"""A disk that is full while a service runs, and has room again."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import uuid

import pytest

from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.errors import StoreError
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


async def keys_until_refused(service):
    for _ in range(200):
        await service.keys.create(f"during {uuid.uuid4().hex}", ["infer"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_costs_nobody_an_answer_and_keys_are_refused_not_lost(
    small_disk, monkeypatch, caplog
):
    monkeypatch.setenv("UIA_STORE_PATH", str(small_disk / "uia.sqlite3"))
    monkeypatch.setattr("uia_lab.store.request_log.RETRY_S", 0.05)
    config = InferenceServiceConfig(enable_hf_server=False, log_prompts=True)
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    await service.start(listen=False)
    manager = service.get_backend_manager()
    manager.register_backend("a", "gpu", "A", lambda: "x", BackendCapabilities({"text-generation"}))
    secret, key = await service.keys.create("before", ["infer"])
    ballast = small_disk / "ballast"
    fill(ballast)
    said = "y" * 20_000
    asked = [await manager.infer("generation", inputs=said) for _ in range(30)]
    assert [answer.text for answer in asked] == ["x"] * 30
    with pytest.raises(StoreError, match="full"):
        await keys_until_refused(service)
    assert service.keys.verify(secret).key_id == key.id
    assert service.parts["store"]["state"] == "running"
    async with asyncio.timeout(50):
        while "the request log cannot write" not in caplog.text:
            await asyncio.sleep(0.05)
    ballast.unlink()
    await service.keys.create("after", ["infer"])
    async with asyncio.timeout(50):
        while len(await service.request_log.find(limit=100)) + service.request_log.dropped < 30:
            await asyncio.sleep(0.05)
    await service.stop()
    connection = sqlite3.connect(small_disk / "uia.sqlite3")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    kept = {name for (name,) in connection.execute("SELECT name FROM keys")}
    connection.close()
    assert {"before", "after"} <= kept
