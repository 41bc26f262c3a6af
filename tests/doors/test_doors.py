import asyncio
import io
import json
import logging
import socket

import aiohttp
import pytest

from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.errors import RateLimited
from uia_lab.doors.application import HttpServer
from uia_lab.doors.base import MAX_BODY


async def test_a_chat_answer_names_its_backend_and_its_request(house):
    async with house.chat() as response:
        body = await response.json()
        assert response.status == 200
        assert response.headers["x-uia-backend"] == "echo"
        assert body["id"].removeprefix("chatcmpl-") == response.headers["x-request-id"].removeprefix("req-")
    assert body["choices"][0]["message"]["content"] == "a b c "
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "echoo"}, 404, "model_not_found", None),
        ({"temperature": "hot"}, 400, "bad_request", "temperature"),
        ({"uia": {"prefer": "tpu"}}, 400, "bad_request", "uia.prefer"),
        ({"uia": {"backend": "nobody"}}, 400, "bad_request", "backend_id"),
        ({"model": "crashes"}, 502, "backend_failed", None),
    ],
)
async def test_errors_come_in_the_envelope(house, fields, status, code, param):
    for stream in (False, True):
        async with house.chat(stream=stream, **fields) as response:
            error = (await response.json())["error"]
        assert response.status == status, error
        assert set(error) == {"message", "type", "param", "code"}
        if code:
            assert error["code"] == code
        if param:
            assert error["param"] == param
    if code == "model_not_found":
        assert "Did you mean 'echo'?" in error["message"]


async def test_a_hint_in_a_header_is_followed_and_a_bad_one_named(house):
    async with house.chat(headers={"x-uia-backend": "echo", "x-uia-timeout": "5"}) as response:
        assert response.status == 200
    async with house.chat(headers={"x-uia-timeout": "soon"}) as response:
        assert (await response.json())["error"]["param"] == "x-uia-timeout"
    async with house.chat(model="gated", headers={"x-uia-timeout": "0.05"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (504, "deadline_exceeded")


async def test_an_id_with_a_slash_is_quoted_in_the_address(house):
    capabilities = BackendCapabilities({"text-generation"}, {"moon"})
    house.manager.register_backend("peer/moon", "gpu", "Moon", lambda: "light", capabilities)
    async with house.call("POST", "backends/peer%2Fmoon/probe") as response:
        assert (await response.json())["id"] == "peer/moon"


async def test_an_internal_error_tells_nothing_and_is_logged(house, caplog, monkeypatch):
    def broken():
        raise LookupError("secret detail")

    monkeypatch.setattr(house.manager, "get_backend_status_report", broken)
    with caplog.at_level(logging.ERROR):
        async with house.call("GET", "status") as response:
            error = (await response.json())["error"]
    assert response.status == 500
    assert "secret" not in str(error)
    assert response.headers["x-request-id"] in error["message"]
    assert "secret detail" in caplog.text
    caplog.clear()
    monkeypatch.undo()


async def test_models_are_the_live_ones(house):
    async with house.call("GET", "v1/models", "read") as response:
        data = (await response.json())["data"]
    assert {item["id"]: item["owned_by"] for item in data}["org/vectors"] == "vectors"
    house.manager.drain("echo")
    async with house.call("GET", "v1/models/org%2Fvectors", "read") as response:
        assert (await response.json())["object"] == "model"
    async with house.call("GET", "v1/models/echo", "read") as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (404, "model_not_found")
    assert "org/vectors" in error["message"]


async def test_status_health_ready(house):
    async with house.call("GET", "status", "read") as response:
        report = await response.json()
    assert report["total_backends"] == 6
    assert report["parts"]["backend_manager"]["state"] == "running"
    async with house.call("GET", "health", None) as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    async with house.call("GET", "ready", "read") as response:
        assert (response.status, (await response.json())["ready"]) == (200, True)


async def test_backends_are_listed_changed_and_probed(house):
    async with house.call("GET", "backends?task=embeddings", "read") as response:
        assert [item["id"] for item in (await response.json())["backends"]] == ["vectors"]
    async with house.call("GET", "backends?type=tpu", "read") as response:
        assert response.status == 400
    async with house.call("PATCH", "backends/echo", json={"weight": 2.5, "draining": True}) as response:
        body = await response.json()
    assert body["weight"] == 2.5
    assert not house.manager.get_backend("echo").enabled
    for change, param in (
        ({"weight": 0}, "weight"),
        ({"wait": 1}, "wait"),
        ({"enabled": True, "draining": True}, "draining"),
        ({"enabled": 1}, "enabled"),
    ):
        async with house.call("PATCH", "backends/echo", json=change) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    async with house.call("PATCH", "backends/echo", json={"enabled": True}) as response:
        assert response.status == 200
    assert house.manager.get_backend("echo").enabled
    async with house.call("POST", "backends/echo/probe") as response:
        assert (await response.json())["status"] == "healthy"
    async with house.call("GET", "backends/ecko", "read") as response:
        assert response.status == 404
        assert "echo" in (await response.json())["error"]["message"]


async def test_the_strategy_changes(house):
    async with house.call("PUT", "strategy", json={"name": "round_robin"}) as response:
        assert (await response.json()) == {"strategy": "round_robin"}
    for body in ({"name": "best"}, {}, {"name": 3}):
        async with house.call("PUT", "strategy", json=body) as response:
            assert response.status == 400
    assert house.manager.strategy_name == "round_robin"


async def test_metrics_have_only_registered_backends_as_labels(house):
    async with house.chat() as response:
        await response.read()
    async with house.chat(model="made-up") as response:
        await response.read()
    async with house.call("GET", "metrics", "read") as response:
        text = await response.text()
    assert 'uia_requests_total{outcome="successful"} 1.0' in text
    assert 'uia_backend_attempts_total{backend="echo",outcome="successful",type="gpu"} 1.0' in text
    assert "made-up" not in text


async def test_unknown_addresses_and_methods_answer_in_the_envelope(house):
    for method, path, status in (("GET", "v1/nothing", 404), ("POST", "", 404), ("DELETE", "strategy", 405)):
        async with house.call(method, path) as response:
            assert (response.status, set(await response.json())) == (status, {"error"})


async def test_a_body_that_is_too_large_is_refused(house):
    async with house.call("POST", "v1/chat/completions", data=io.BytesIO(b" " * (MAX_BODY + 1))) as response:
        assert (response.status, set(await response.json())) == (413, {"error"})


async def test_a_taken_port_is_an_error_that_names_the_setting(house):
    with pytest.raises(OSError, match="hf_server_port"):
        await HttpServer(house.service, "127.0.0.1", house.server.port).start()


async def test_stop_ends_streams_and_sockets_and_frees_the_port(house):
    async with (
        house.chat("endless", stream=True) as stream,
        house.session.ws_connect(house.server.url + "ws/x?token=uia-test-key-of-read") as ws,
    ):
        await stream.content.readline()
        await ws.receive()
        reading = asyncio.create_task(stream.content.read())
        async with asyncio.timeout(50):
            await house.server.stop()
            text = await reading
            assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert b"event: error" in text
    assert b"[DONE]" not in text
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", house.server.port))
    await house.until_idle()


async def test_no_body_is_taken_for_a_form(house):
    """What curl -d says of a body by default; tornado would count the ampersands of the prompt as fields."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    text = "a&b " * 1500
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]})
    async with house.call("POST", "v1/chat/completions", data=body, headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["choices"][0]["message"]["content"] == text


async def test_more_answers_than_anyone_reads_are_refused(house):
    body = {"model": "echo", "prompt": ["x"] * 2000, "n": 100}
    async with house.call("POST", "v1/completions", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "n"


async def test_a_retry_after_that_is_no_number_costs_no_answer(house):
    def limited():
        raise RateLimited("slow down", retry_after=float("inf"))

    house.manager.register_backend(
        "limited", "gpu", "Limited", limited, BackendCapabilities({"text-generation"}, {"limited"})
    )
    async with house.chat(model="limited") as response:
        assert response.status == 429
        assert "slow down" in (await response.json())["error"]["message"]
