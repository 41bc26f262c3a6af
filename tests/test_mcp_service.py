"""MCP servers as backends of a service: balanced with others, killed and recovered, kept and restored."""

import asyncio
import collections
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.upstreams.uia_server import KEY, uia_servers
from uia_lab.access.principals import Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities, BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import Unsupported
from uia_lab.doors.application import HttpServer
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

TOOLS = [sys.executable, str(Path(__file__).parent / "upstreams" / "mcp_tools.py")]
SHOUT = {"text-generation": {"tool": "shout", "arguments": {"text": "$prompt"}}}
PID = {"text-generation": {"tool": "pid", "arguments": {"text": "$prompt"}}}


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("PEER_API_KEY", KEY)

    async def start(**settings):
        config = InferenceServiceConfig(
            enable_hf_server=False,
            enable_api_backends=False,
            load_balancing_strategy="round_robin",
            store_path=str(tmp_path / "store.sqlite3"),
            **settings,
        )
        service = UnifiedInferenceService(config, manager=BackendManager(config))
        await service.start(listen=False)
        return service

    return start


def described(backend_id, **fields):
    return BackendDescription(id=backend_id, type="mcp", **fields)


async def until(manager, backend_id, status):
    async with asyncio.timeout(60):
        while manager.get_backend(backend_id).status is not status:
            await asyncio.sleep(0.05)


async def test_they_share_the_requests_with_others_die_and_recover(start):
    async with uia_servers() as make:
        peer = await make()
        service = await start(backend_health_check_interval=1.0)
        manager = service.get_backend_manager()
        try:
            manager.register_backend(
                "here", "gpu", "Here", lambda inputs: inputs, BackendCapabilities({"chat"}, {"echo"})
            )
            over_http = described(
                "there", endpoint=peer.url + "mcp", api_key_env="PEER_API_KEY", models=("echo",)
            )
            over_stdio = described("child", options={"command": TOOLS, "tools": PID}, models=("echo",))
            for description in (over_http, over_stdio):
                info = await service.backends.add(description)
                assert info.status is BackendStatus.HEALTHY, info.reason
            assert (manager.get_backend("there").type, manager.get_backend("child").type) == ("mcp", "mcp")
            served, answers = collections.Counter(), {}
            for _ in range(9):
                answer = await manager.infer("chat", "echo", "x")
                served[answer.backend_id] += 1
                answers[answer.backend_id] = answer.result
            assert served == {"here": 3, "there": 3, "child": 3}
            # What may cost or change something is asked only by its name.
            unnamed = {item.backend_id: item.reason for item in manager.explain("chat").candidates}
            assert unnamed["child"] == unnamed["there"] == "external: not named"

            psutil.Process(int(answers["child"])).kill()
            await peer.stop()
            for name in ("child", "there"):
                await manager.probe(name)
                assert manager.get_backend(name).status in (BackendStatus.OFFLINE, BackendStatus.HEALTHY)
            assert {(await manager.infer("chat", "echo", "x")).result for _ in range(4)} >= {"x"}
            await make(peer.port)
            for name in ("child", "there"):
                await until(manager, name, BackendStatus.HEALTHY)
            served = collections.Counter(
                [(await manager.infer("chat", "echo", "x")).backend_id for _ in range(9)]
            )
            assert served == {"here": 3, "there": 3, "child": 3}
        finally:
            await service.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-mcp")]
    assert not [
        child for child in psutil.Process().children(recursive=True) if "mcp_tools" in str(child.cmdline())
    ]


async def test_one_that_was_added_is_there_after_a_restart(start):
    service = await start()
    try:
        info = await service.backends.add(described("loud", options={"command": TOOLS, "tools": SHOUT}))
        assert info.models == {"loud"}
    finally:
        await service.stop()
    service = await start()
    try:
        manager = service.get_backend_manager()
        assert (await manager.probe("loud")).status is BackendStatus.HEALTHY
        assert (await manager.infer("chat", "loud", "hello")).result == "HELLO"
        assert await service.backends.remove("loud")
    finally:
        await service.stop()
    service = await start()
    try:
        assert service.get_backend_manager().get_backend("loud") is None
    finally:
        await service.stop()


async def test_only_administrators_add_commands(start):
    service = await start()
    keys = {scope: f"uia-test-key-of-{scope}" for scope in ("infer", "read", "admin")}
    for scope, key in keys.items():
        service.keys.add(key, Principal(scope, frozenset({scope})))
    server = HttpServer(service, "127.0.0.1", 0)
    await server.start()
    body = {"id": "loud", "type": "mcp", "options": {"command": TOOLS, "tools": SHOUT}}
    try:
        async with aiohttp.ClientSession() as session:
            for scope, status in (("infer", 403), ("read", 403), ("admin", 201)):
                headers = {"Authorization": f"Bearer {keys[scope]}"}
                async with session.post(server.url + "backends", json=body, headers=headers) as response:
                    assert response.status == status, await response.text()
            assert service.get_backend_manager().get_backend("loud").status is BackendStatus.HEALTHY
    finally:
        await server.stop()
        await service.stop()


async def test_switched_off_there_is_neither_door_nor_backend(start):
    service = await start(enable_mcp=False)
    try:
        assert service.parts["mcp"] == {"state": "off", "reason": "enable_mcp"}
        with pytest.raises(Unsupported, match="enable_mcp"):
            await service.backends.add(described("loud", options={"command": TOOLS, "tools": SHOUT}))
    finally:
        await service.stop()
