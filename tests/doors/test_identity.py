"""Who may come in where: the whole table, with nobody's key and with each kind of key."""

import pytest

from uia_lab.doors.routes import routes

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
NOBODY, INFER, READ, BOTH, ADMIN = "", "infer", "read", "infer read", "admin"

# What each door takes, written down a second time: a door that is not here fails the test.
TAKES = {
    "/v1/chat/completions": {"POST": INFER},
    "/v1/completions": {"POST": INFER},
    "/v1/embeddings": {"POST": INFER},
    "/v1/responses": {"POST": INFER},
    "/v1/messages": {"POST": INFER},
    "/v1/images/generations": {"POST": INFER},
    "/v1/audio/transcriptions": {"POST": INFER},
    "/v1/models": {"GET": BOTH},
    "/v1/models/(.+)": {"GET": BOTH},
    "/infer": {"POST": INFER},
    "/models": {"GET": READ},
    "/models/load": {"POST": ADMIN},
    "/models/unload": {"POST": ADMIN},
    "/hardware": {"GET": READ},
    "/status": {"GET": READ},
    "/history": {"GET": READ},
    "/health": {"GET": NOBODY},
    "/ready": {"GET": READ},
    "/backends": {"GET": READ, "POST": ADMIN},
    "/backends/([^/]+)": {"GET": READ, "PATCH": ADMIN, "DELETE": ADMIN},
    "/backends/([^/]+)/probe": {"POST": ADMIN},
    "/strategy": {"GET": READ, "PUT": ADMIN},
    "/explain": {"POST": READ},
    "/aliases": {"GET": READ},
    "/aliases/(.+)": {"GET": READ, "PUT": ADMIN, "DELETE": ADMIN},
    "/keys": {"GET": BOTH, "POST": ADMIN},
    "/keys/([^/]+)": {"DELETE": ADMIN},
    "/peers": {"GET": READ},
    "/peers/accept": {"POST": ADMIN},
    "/peers/invites": {"POST": ADMIN},
    "/peers/invites/([^/]+)": {"DELETE": ADMIN},
    "/peers/([^/]+)/trust": {"POST": ADMIN, "DELETE": ADMIN},
    "/requests": {"GET": BOTH},
    "/requests/([^/]+)": {"GET": BOTH, "DELETE": INFER},
    "/replay": {"POST": BOTH},
    "/metrics": {"GET": READ},
    "/openapi.yaml": {"GET": BOTH},
    "/mcp": {"GET": BOTH, "POST": BOTH, "DELETE": BOTH},
    "/ws/([^/]+)": {"GET": BOTH},
    "/(.*)": dict.fromkeys(METHODS, READ),
}


def address(pattern):
    return pattern.lstrip("/").replace("([^/]+)", "x").replace("(.+)", "x").replace("(.*)", "x")


def has(door, method):
    from tornado.web import RequestHandler

    return getattr(door, method.lower()) is not getattr(RequestHandler, method.lower())


def test_the_table_here_is_the_table_there():
    there = {pattern: {method for method in METHODS if has(door, method)} for pattern, door in routes()}
    assert there == {pattern: set(methods) for pattern, methods in TAKES.items()}


def walked():
    return [(pattern, method, takes) for pattern, by in TAKES.items() for method, takes in by.items()]


@pytest.mark.parametrize("key", [None, "uia-not-one-of-ours-at-all", "test-key-of-admin"])
async def test_every_door_but_health_refuses_strangers(house, key):
    headers = {} if key is None else {"Authorization": f"Bearer {key}", "x-api-key": key}
    for pattern, _ in routes():
        for method in METHODS:
            if pattern == "/health":
                continue
            async with house.call(method, address(pattern), None, headers=headers, json={}) as response:
                assert response.status == 401, (pattern, method)
                error = (await response.json())["error"]
                # Anthropic's envelope has no code.
                assert error["type"] == "authentication_error"
                assert error.get("code", "invalid_api_key") == "invalid_api_key"
                assert key is None or key not in str(error)


@pytest.mark.parametrize("key", ["infer", "read", "infer2", "admin"])
async def test_each_kind_of_key_opens_what_it_is_for_and_nothing_else(house, key):
    scope = key.rstrip("2")
    for pattern, method, takes in walked():
        opens = not takes or scope in takes.split() or scope == "admin"
        async with house.call(method, address(pattern), key, json={}) as response:
            text = await response.text()
            refused = response.status == 403 and "needs the scope" in text
            assert refused is not opens, (pattern, method, response.status, text)
            assert response.status != 401


async def test_to_another_key_a_request_does_not_exist(house):
    async with house.chat("gated", stream=True) as response:
        request_id = response.headers["x-request-id"]
        await house.until_running()
        for key, status in (("infer2", 404), ("read", 404), ("infer", 200), ("admin", 200)):
            async with house.call("GET", f"requests/{request_id}", key) as seen:
                assert seen.status == status, key
        async with house.call("GET", "requests", "infer2") as listed:
            assert (await listed.json())["requests"] == []
        async with house.call("DELETE", f"requests/{request_id}", "infer2") as refused:
            assert refused.status == 404
        assert request_id in house.manager.running
        async with house.call("DELETE", f"requests/{request_id}", "infer") as ended:
            assert ended.status == 200
    await house.until_idle()


async def test_a_key_in_the_address_opens_the_socket_only_and_is_not_logged(house, caplog):
    caplog.set_level(0)
    async with house.call("GET", "status?token=uia-test-key-of-admin", None) as response:
        assert response.status == 401
    async with house.session.ws_connect(house.server.url + "ws/me?token=uia-test-key-of-admin") as ws:
        assert (await ws.receive_json())["type"] == "connection"
    assert "uia-test-key-of-admin" not in caplog.text


async def test_a_revoked_key_is_refused(house):
    house.service.keys.forget("read")
    async with house.call("GET", "status", "read") as response:
        assert response.status == 401
