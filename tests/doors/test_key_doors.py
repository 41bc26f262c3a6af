"""Scoped keys over the wire: made, shown once, limited, revoked."""

import asyncio
import time
from collections import Counter

import aiohttp
import pytest

from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService


async def made(house, name="script", scopes=("infer",), **fields):
    body = {"name": name, "scopes": list(scopes), **fields}
    async with house.call("POST", "keys", json=body) as response:
        assert response.status == 201, await response.text()
        return await response.json()


def using(house, key, method, path, **options):
    headers = {"Authorization": f"Bearer {key['key']}"} | options.pop("headers", {})
    return house.session.request(method, house.server.url + path, headers=headers, **options)


def chat(house, key, model="echo", text="a b c", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return using(house, key, "POST", "v1/chat/completions", json=body)


async def test_a_key_is_shown_once_and_works(house):
    key = await made(house, models=["echo"], expires_at=time.time() + 100)
    assert key["key"].startswith("uia-")
    assert (key["scopes"], key["models"], key["tokens_used"]) == (["infer"], ["echo"], 0)
    async with chat(house, key) as response:
        assert response.status == 200
    async with chat(house, key, "endless") as response:
        assert response.status == 403
        assert (await response.json())["error"]["param"] == "model"
    async with using(house, key, "GET", "v1/models") as response:
        assert [item["id"] for item in (await response.json())["data"]] == ["echo"]
    async with using(house, key, "GET", "v1/models/endless") as response:
        assert response.status == 404
    async with house.call("GET", "keys") as response:
        text = await response.text()
    (listed,) = (await response.json())["keys"]
    assert key["key"] not in text
    assert listed["id"] == key["id"]
    assert listed["tokens_used"] > 0
    assert listed["last_used_at"] == pytest.approx(time.time(), abs=60)
    await made(house, "other")
    async with using(house, key, "GET", "keys") as response:
        assert [item["id"] for item in (await response.json())["keys"]] == [key["id"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": ["infer"]}, "name"),
        ({"name": "a", "scopes": ["root"]}, "scopes"),
        ({"name": "a"}, "scopes"),
        ({"name": "a", "scopes": "infer"}, "scopes"),
        ({"name": "a", "scopes": ["infer"], "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "a", "scopes": ["infer"], "backend_types": ["gpus"]}, "backend_types"),
        ({"name": "a", "scopes": ["infer"], "models": []}, "models"),
        ({"name": "a", "scopes": ["infer"], "expires_at": "soon"}, "expires_at"),
        ({"name": "a", "scopes": ["infer"], "expires_at": 5}, "expires_at"),
        ({"name": "a", "scopes": ["infer"], "expires_at": 9e14}, "expires_at"),
        ({"name": "a", "scopes": ["infer"], "expires_at": "9e14"}, "expires_at"),
        ({"name": "a", "scopes": ["infer"], "expires_at": "9999-12-31T23:59:59-23:00"}, "expires_at"),
        ({"name": "a", "scopes": ["infer"], "rpm": 5}, "rpm"),
        ({"name": "taken", "scopes": ["infer"]}, "name"),
    ],
)
async def test_a_bad_key_is_refused_and_the_field_named(house, body, param):
    await made(house, "taken")
    async with house.call("POST", "keys", json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param)
    assert len(house.service.keys.all()) == 1


async def test_revoking_ends_what_is_under_way_at_once(house):
    key = await made(house, scopes=["infer", "read"])
    socket = await house.session.ws_connect(f"{house.server.url}ws/x?token={key['key']}")
    assert (await socket.receive_json())["type"] == "connection"
    async with chat(house, key, "endless", stream=True) as response:
        await response.content.readany()
        async with house.call("DELETE", f"keys/{key['id']}") as revoked:
            assert revoked.status == 200
        async with asyncio.timeout(20):
            tail = (await response.read())[-400:]
    assert b"cancelled" in tail
    async with asyncio.timeout(20):
        while (await socket.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
            pass
    await socket.close()
    async with chat(house, key) as response:
        assert response.status == 401
    async with house.call("DELETE", f"keys/{key['id']}") as response:
        assert response.status == 404
    await house.until_idle()


async def test_keys_their_uses_and_the_strategy_survive_a_restart(house):
    key = await made(house, requests_per_minute=100)
    gone = await made(house, "gone")
    async with house.call("DELETE", f"keys/{gone['id']}") as response:
        assert response.status == 200
    async with chat(house, key) as response:
        used = (await response.json())["usage"]["total_tokens"]
    async with house.call("PUT", "strategy", json={"name": "round_robin"}) as response:
        assert response.status == 200
    await house.service.stop()
    config = house.service.config
    again = UnifiedInferenceService(config, manager=BackendManager(config))
    await again.start(listen=False)
    assert again.keys.verify(key["key"]).key_id == key["id"]
    assert again.keys.verify(gone["key"]) is None
    (kept,) = again.keys.all()
    assert (kept.tokens_used, kept.limits.requests_per_minute) == (used, 100)
    assert again.get_backend_manager().strategy_name == "round_robin"
    await again.stop()
    # Whoever configures another one since has the last word.
    config.load_balancing_strategy = "least_loaded"
    third = UnifiedInferenceService(config, manager=BackendManager(config))
    await third.start(listen=False)
    assert third.get_backend_manager().strategy_name == "least_loaded"
    await third.stop()


async def test_limits_are_told_in_headers(house):
    key = await made(house, requests_per_minute=2, tokens_per_minute=1000)
    async with chat(house, key, stream=True) as response:
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        assert int(response.headers["x-ratelimit-remaining-tokens"]) < 1000
        await response.read()
    async with chat(house, key) as response:
        assert response.headers["x-ratelimit-limit-tokens"] == "1000"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
    async with chat(house, key) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (429, "rate_limit_exceeded")
    assert 55 <= int(response.headers["Retry-After"]) <= 61
    assert response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_limits_hold_under_two_hundred_clients_and_the_log_agrees(house):
    most, clients = 50, 200
    key = await made(house, requests_per_minute=most, max_concurrent=30)
    seen, tokens = Counter(), 0

    async def client(number):
        nonlocal tokens
        for _ in range(3):
            async with chat(house, key, text=f"word {number}") as response:
                body = await response.json()
                seen[response.status] += 1
                if response.status == 200:
                    tokens += body["usage"]["total_tokens"]
                else:
                    assert int(response.headers["Retry-After"]) >= 1

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:
        house.session, before = session, house.session
        await asyncio.gather(*(client(number) for number in range(clients)))
        house.session = before
    assert sum(seen.values()) == 3 * clients
    assert set(seen) == {200, 429}
    assert seen[200] == most
    logged = Counter()
    records = await house.service.request_log.find(
        principal=house.service.keys.get(key["id"]).principal, limit=1000
    )
    for record in records:
        logged[record.outcome] += 1
    assert logged == {"ok": seen[200], "rejected": seen[429]}
    assert sum(record.input_tokens + record.output_tokens for record in records) == tokens
    (state,) = house.service.keys.all()
    assert state.tokens_used == tokens
    assert house.service.limits.running == 0
    report = house.manager.get_backend_status_report()
    assert report["total_requests"] == report["total_successful"] + report["total_rejected"] == 3 * clients


async def test_the_cap_on_all_requests_is_a_clear_503(house):
    house.service.limits.most = 2
    running = [asyncio.create_task(_read(house.chat("gated"))) for _ in range(2)]
    async with asyncio.timeout(20):
        while len(house.manager.running) < 2:
            await asyncio.sleep(0.01)
    async with house.chat() as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (503, "overloaded")
    assert "max_concurrent_requests" in error["message"]
    assert response.headers["Retry-After"] == "1"
    house.gate.set()
    assert await asyncio.gather(*running) == [200, 200]
    async with house.chat() as response:
        assert response.status == 200


async def test_types_a_key_does_not_permit(house):
    key = await made(house, backend_types=["api"])
    async with chat(house, key) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (403, "not_allowed")
    assert "api" in error["message"]


async def _read(asked):
    async with asked as response:
        await response.read()
        return response.status
