"""Backends registered by their address over the wire: looked at, kept, restored, changed, removed."""

import pytest

from tests.upstreams.scripted_api import ScriptedApi, words
from tests.upstreams.uia_server import KEY, uia_servers
from uia_lab.domain.backends import BackendStatus
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

SECRET = "sk-the-key-of-the-upstream-0123456789"


@pytest.fixture
async def api():
    async with ScriptedApi() as server:
        server.lists("far-model")
        server.answers["POST", "/v1/chat/completions"] = (200, words("from", " afar"))
        yield server


async def added(house, api, key="admin", **fields):
    async with house.call("POST", "backends", key, json={"endpoint": api.url, **fields}) as response:
        return response.status, await response.json()


async def test_a_backend_is_added_serves_and_is_removed(house, api, monkeypatch):
    monkeypatch.setenv("FAR_API_KEY", SECRET)
    status, backend = await added(
        house, api, name="Far", api_key_env="FAR_API_KEY", weight=2, max_concurrency=3
    )
    assert status == 201, backend
    assert (backend["status"], backend["models"], backend["name"]) == ("healthy", ["far-model"], "Far")
    assert (backend["weight"], backend["max_concurrency"]) == (2.0, 3)
    assert backend["id"] == f"api-local-{api.port}"
    assert SECRET not in str(backend)
    async with house.chat("far-model") as response:
        body = await response.json()
    assert body["choices"][0]["message"]["content"] == "from afar"
    assert api.asked[-1].headers["Authorization"] == f"Bearer {SECRET}"
    async with house.call("DELETE", f"backends/{backend['id']}") as response:
        assert response.status == 200
    async with house.chat("far-model") as response:
        assert response.status == 404
    assert await house.service.kept.store.backends.load() == {}


async def test_it_comes_back_after_a_restart_unknown_until_it_is_looked_at(house, api):
    await added(house, api, id="far", models=["far-model"])
    async with house.call("PATCH", "backends/far", json={"weight": 5, "max_concurrency": 2}) as response:
        assert (await response.json())["weight"] == 5.0
    await added(house, api, id="drained")
    async with house.call("PATCH", "backends/drained", json={"draining": True}) as response:
        assert not (await response.json())["enabled"]
    await house.service.stop()
    config = house.service.config
    again = UnifiedInferenceService(config, manager=BackendManager(config))
    await again.start(listen=False)
    manager = again.get_backend_manager()
    found = manager.get_backend("far")
    assert (found.status, found.weight, found.max_concurrency) == (BackendStatus.UNKNOWN, 5.0, 2)
    assert not manager.get_backend("drained").enabled
    assert (
        await manager.infer("generation", "far-model", messages=[{"role": "user", "content": "x"}])
    ).text == ("from afar")
    assert (await manager.probe("far")).status is BackendStatus.HEALTHY
    await again.stop()


@pytest.mark.parametrize(
    ("endpoint", "status"),
    [
        ("http://169.254.169.254/latest/meta-data", 403),
        ("http://[fe80::1]:8000", 403),
        ("http://2852039166/", 403),
        ("http://0xA9FEA9FE:80", 403),
        ("http://[::ffff:169.254.169.254]/v1", 403),
        ("http://metadata.google.internal/computeMetadata", 403),
        ("http://0.0.0.0:80", 403),
        ("http://user:hidden-word@127.0.0.1:1", 400),
        ("http://127.0.0.1:1/?key=hidden-word", 400),
        ("ftp://127.0.0.1", 400),
        ("file:///etc/passwd", 400),
        ("http://", 400),
        ("http://127.0.0.1:99999", 400),
        ("127.0.0.1:8000", 400),
    ],
)
async def test_addresses_that_are_refused(house, endpoint, status):
    async with house.call("POST", "backends", json={"endpoint": endpoint, "dialect": "openai"}) as response:
        text = await response.text()
    assert response.status == status, text
    assert "hidden-word" not in text
    assert len(house.manager.list_backends()) == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"type": "apis"}, "type"),
        ({"type": "p2p"}, "type"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "api_key_env"),
        ({"api_key": SECRET}, "api_key"),
        ({"id": "echo"}, "id"),
        ({"id": "a b"}, "backend_id"),
        ({"tasks": ["juggling"]}, "task"),
        ({"weight": -1}, "weight"),
        ({"options": {"headers": {"Authorization": SECRET}}}, "options.headers"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_registered(house, api, fields, param):
    status, body = await added(house, api, **fields)
    assert status in (400, 401), body
    assert body["error"]["param"] == param
    assert SECRET not in str(body)
    assert len(house.manager.list_backends()) == 6
    assert await house.service.kept.store.backends.load() == {}


async def test_nobody_at_the_address_is_said_and_a_named_dialect_waits_for_it(house, api):
    nowhere = {"endpoint": "http://127.0.0.1:9"}
    async with house.call("POST", "backends", json=nowhere) as response:
        assert response.status in (502, 503)
        assert "127.0.0.1:9" in (await response.json())["error"]["message"]
    async with house.call("POST", "backends", json=nowhere | {"dialect": "vllm", "id": "later"}) as response:
        assert (response.status, (await response.json())["status"]) == (201, "offline")


async def test_what_cannot_be_kept_is_not_registered(house, api, monkeypatch):
    from uia_lab.domain.errors import StoreError

    async def full(name, value):
        raise StoreError("the disk is full")

    monkeypatch.setattr(house.service.kept.store.backends, "put", full)
    status, body = await added(house, api, id="far")
    assert (status, body["error"]["code"]) == (503, "store_failed")
    assert house.manager.get_backend("far") is None


async def test_another_uia_lab_over_its_socket_is_added_kept_and_restored(house, monkeypatch):
    monkeypatch.setenv("THERE_API_KEY", KEY)
    async with uia_servers() as make_server:
        there = await make_server()
        body = {"type": "websocket", "endpoint": there.url, "api_key_env": "THERE_API_KEY", "id": "there"}
        async with house.call("POST", "backends", json=body | {"models": ["far"]}) as response:
            assert response.status == 201, await response.text()
        async with house.call("DELETE", "backends/there") as response:
            assert response.status == 200
        async with house.call("POST", "backends", json=body | {"dialect": "ollama"}) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "dialect")
        async with house.call("POST", "backends", json=body) as response:
            backend = await response.json()
        assert (response.status, backend["status"]) == (201, "healthy")
        assert "gated" in backend["models"]
        await house.service.stop()
        config = house.service.config
        again = UnifiedInferenceService(config, manager=BackendManager(config))
        await again.start(listen=False)
        result = await again.get_backend_manager().infer("generation", "echo", "from there")
        assert (result.text, result.backend_id) == ("from there ", "there")
        await again.stop()
