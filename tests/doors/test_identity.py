import pytest

from uia_lab.doors.routes import routes

METHODS = ("get", "post", "put", "patch", "delete")


def address(pattern):
    return pattern.lstrip("/").replace("([^/]+)", "x").replace("(.+)", "x").replace("(.*)", "x")


def walked():
    for pattern, door in routes():
        for method in METHODS:
            if door.__dict__.get(method) or method in ("get", "post"):
                yield pattern, method, door


@pytest.mark.parametrize("key", [None, "uia-not-one-of-ours-at-all", "test-key-of-admin"])
async def test_every_door_but_health_refuses_strangers(house, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}", "x-api-key": key}
    for pattern, method, _ in walked():
        if pattern == "/health":
            continue
        async with house.call(method.upper(), address(pattern), None, headers=headers, json={}) as response:
            assert response.status == 401, (pattern, method)
            error = (await response.json())["error"]
            # Anthropic's envelope has no code.
            assert error["type"] == "authentication_error"
            assert error.get("code", "invalid_api_key") == "invalid_api_key"
            assert key is None or key not in str(error)


async def test_scopes(house):
    for key, method, path, status in (
        ("read", "POST", "v1/chat/completions", 403),
        ("read", "POST", "v1/completions", 403),
        ("read", "POST", "v1/embeddings", 403),
        ("read", "DELETE", "requests/x", 403),
        ("read", "PATCH", "backends/echo", 403),
        ("read", "PUT", "strategy", 403),
        ("read", "POST", "backends/echo/probe", 403),
        ("read", "GET", "backends/echo", 200),
        ("infer", "GET", "status", 403),
        ("infer", "GET", "v1/nothing", 403),
        ("admin", "GET", "status", 200),
        ("admin", "DELETE", "requests/x", 404),
    ):
        async with house.call(method, path, key) as response:
            assert response.status == status, (key, method, path)


async def test_a_key_in_the_address_opens_the_socket_only_and_is_not_logged(house, caplog):
    caplog.set_level(0)
    async with house.call("GET", "status?token=uia-test-key-of-admin", None) as response:
        assert response.status == 401
    async with house.session.ws_connect(house.server.url + "ws/me?token=uia-test-key-of-admin") as ws:
        assert (await ws.receive_json())["type"] == "connection"
    assert "uia-test-key-of-admin" not in caplog.text


async def test_a_revoked_key_is_refused(house):
    house.service.keys.revoke("read")
    async with house.call("GET", "status", "read") as response:
        assert response.status == 401
