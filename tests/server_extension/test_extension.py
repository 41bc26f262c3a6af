"""The extension in a real Jupyter server, in a process of its own."""

import asyncio
import time

import aiohttp
import psutil
import pytest
import yaml

from tests.doors.test_identity import METHODS, address
from tests.server_extension.jupyter_process import (
    HELLO,
    TOKEN,
    finish,
    launch,
    listening,
    log_in,
    start_kernel,
    with_token,
)
from uia_lab.doors.routes import routes


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    jupyter = launch(tmp_path_factory.mktemp("jupyter"), "--ServerApp.allow_unauthenticated_access=False")
    asyncio.run(listening(jupyter))
    yield jupyter
    finish(jupyter)
    text = jupyter.log.read_text()
    assert "Traceback" not in text
    assert "uia-" not in text.replace("uia-lab", "")
    assert "registered for /nb/uia" not in text, "Jupyter's warning of an open door"


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def test_jupyters_token_opens_every_door(jupyter, session):
    async with session.get(jupyter.doors + "status", headers=with_token()) as response:
        assert response.status == 200
        report = await response.json()
    assert {item["id"] for item in report["backends"]} == {"echo", "environment", "endless"}
    assert report["parts"]["local_models"]["state"] == "off"
    async with session.post(
        jupyter.doors + "v1/chat/completions", json=HELLO, headers={"Authorization": f"token {TOKEN}"}
    ) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "hi there"
    async with session.put(
        jupyter.doors + "strategy", json={"name": "round_robin"}, headers=with_token()
    ) as response:
        assert response.status == 200


async def test_the_description_of_the_doors_has_their_address(jupyter, session):
    async with session.get(jupyter.doors + "openapi.yaml", headers=with_token()) as response:
        assert response.headers["Content-Type"] == "application/yaml"
        described = yaml.safe_load(await response.text())
    assert described["servers"] == [{"url": "/nb/uia/"}]
    assert "/v1/chat/completions" in described["paths"]


async def test_a_stream_ends_properly(jupyter, session):
    url = jupyter.doors + "v1/chat/completions"
    async with session.post(url, json=HELLO | {"stream": True}, headers=with_token()) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_the_doors_of_other_dialects(jupyter, session):
    body = {"model": "echo", "max_tokens": 5, "messages": HELLO["messages"]}
    url = jupyter.doors + "v1/messages"
    async with session.post(url, json=body, headers=with_token()) as response:
        assert (await response.json())["content"] == [{"type": "text", "text": "hi there"}]
    session.cookie_jar.clear()
    async with session.post(url, json=body, headers={"x-api-key": "sk-ant-nobody"}) as response:
        assert response.status == 401
        assert (await response.json())["type"] == "error"
    async with session.post(
        jupyter.doors + "v1/responses", json={"model": "echo", "input": "hi"}, headers=with_token()
    ) as response:
        assert (await response.json())["output"][0]["content"][0]["text"] == "hi"
    form = aiohttp.FormData({"model": "echo"})
    form.add_field("file", b"RIFF", filename="a.wav")
    url = jupyter.doors + "v1/audio/transcriptions"
    async with session.post(url, data=form, headers=with_token()) as response:
        # The form was read: what is wrong is that this backend cannot hear.
        assert "not audio-transcription" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "status"), ("POST", "v1/chat/completions"), ("GET", "ws/x"), ("PUT", "strategy"), ("GET", "no")],
)
async def test_strangers_get_401_in_the_envelope(jupyter, session, method, path):
    for headers in ({}, with_token("uia-not-a-key-of-ours"), {"Cookie": "username-x=forged"}):
        async with session.request(method, jupyter.doors + path, headers=headers, json={}) as response:
            assert response.status == 401
            assert (await response.json())["error"]["type"] == "authentication_error"


async def test_a_browser_needs_its_xsrf_token(jupyter, session):
    proof = await log_in(session, jupyter)
    url = jupyter.doors + "v1/chat/completions"
    async with session.get(jupyter.doors + "status") as response:
        assert response.status == 200
    async with session.post(url, json=HELLO) as response:
        assert (response.status, set(await response.json())) == (403, {"error"})
    async with session.post(url, json=HELLO, headers=proof) as response:
        assert response.status == 200
    foreign = {"Origin": "https://elsewhere.example"}
    async with session.post(url, json=HELLO, headers=proof | foreign) as response:
        assert response.status in (403, 404)
    async with session.get(jupyter.doors + "status", headers=foreign) as response:
        assert response.status == 403


async def test_a_browsers_socket(jupyter, session):
    await log_in(session, jupyter)
    origin = {"Origin": jupyter.url.removesuffix("/nb/")}
    async with session.ws_connect(jupyter.doors + "ws/page", headers=origin) as ws:
        assert (await ws.receive_json())["type"] == "connection"
        await ws.send_json({"type": "subscribe", "topics": ["status"]})
        assert (await ws.receive_json())["type"] == "subscribed"
        assert (await ws.receive_json())["data"]["total_backends"] == 3
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await session.ws_connect(jupyter.doors + "ws/page", headers={"Origin": "https://elsewhere.example"})
    assert caught.value.status == 403


async def test_kernels_get_a_key_that_opens_our_doors_and_nothing_of_jupyters(jupyter, session):
    kernel_id, told = await start_kernel(session, jupyter, with_token())
    url, key = told["UIA_LAB_URL"], told["UIA_LAB_TOKEN"]
    session.cookie_jar.clear()
    assert url == told["where"] == jupyter.doors
    assert "echo" in told["backends"]
    async with aiohttp.ClientSession(headers=with_token(key)) as kernel:
        async with kernel.get(url + "status") as response:
            assert response.status == 200
            assert "Set-Cookie" not in response.headers
        async with kernel.post(url + "v1/chat/completions", json=HELLO) as response:
            assert response.status == 200
        async with kernel.ws_connect(f"{url}ws/kernel?token={key}") as ws:
            assert (await ws.receive_json())["type"] == "connection"
        for path in ("api/kernels", "api/contents", "api/terminals", "api/sessions", "api/status", "lab"):
            for options in ({}, {"params": {"token": key}}):
                async with kernel.get(jupyter.url + path, allow_redirects=False, **options) as response:
                    assert response.status in (302, 401, 403, 404), path
        async with kernel.post(jupyter.url + "api/kernels", json={}) as response:
            assert response.status == 403
    headers = {"x-api-key": key}
    async with session.get(jupyter.url + "api/kernels", headers=headers, allow_redirects=False) as response:
        assert response.status in (302, 403)
    async with session.delete(f"{jupyter.url}api/kernels/{kernel_id}", headers=with_token()) as response:
        assert response.status == 204


def environment_of(process):
    try:
        return process.environ().values()
    except psutil.NoSuchProcess:
        # A shell's own short-lived children come and go.
        return ()


async def test_only_kernels_inherit_the_key(jupyter, session):
    kernel_id, told = await start_kernel(session, jupyter, with_token())
    async with session.post(jupyter.url + "api/terminals", headers=with_token()) as response:
        assert response.status == 200, await response.text()
        terminal = (await response.json())["name"]
    body = {"model": "environment", "messages": HELLO["messages"]}
    async with session.post(
        jupyter.doors + "v1/chat/completions", json=body, headers=with_token()
    ) as response:
        assert (await response.json())["choices"][0]["message"]["content"].split() == []
    children = psutil.Process(jupyter.process.pid).children(recursive=True)
    knowing = [child for child in children if told["UIA_LAB_TOKEN"] in environment_of(child)]
    assert len(children) >= 2
    assert [any("told.json" in part for part in child.cmdline()) for child in knowing] == [True]
    async with session.delete(f"{jupyter.url}api/terminals/{terminal}", headers=with_token()) as response:
        assert response.status == 204
    async with session.delete(f"{jupyter.url}api/kernels/{kernel_id}", headers=with_token()) as response:
        assert response.status == 204


async def test_the_whole_table_refuses_strangers_inside_jupyter_too(jupyter, session):
    for pattern, _ in routes():
        for method in METHODS:
            if pattern == "/health":
                continue
            async with session.request(method, jupyter.doors + address(pattern), json={}) as response:
                assert response.status == 401, (pattern, method)
                # Anthropic's envelope has no code.
                assert (await response.json())["error"]["type"] == "authentication_error"


async def test_a_scoped_key_opens_what_it_is_for_and_nothing_of_jupyters(jupyter, session):
    body = {"name": "script", "scopes": ["infer"], "models": ["echo"], "max_concurrent": 1}
    async with session.post(jupyter.doors + "keys", json=body, headers=with_token()) as response:
        assert response.status == 201, await response.text()
        made = await response.json()
    # Jupyter answers its token with a cookie that logs in.
    session.cookie_jar.clear()
    key = with_token(made["key"])
    async with session.post(jupyter.doors + "v1/chat/completions", json=HELLO, headers=key) as response:
        assert response.status == 200
        assert "Set-Cookie" not in response.headers
    for method, path, status in (
        ("GET", "uia/v1/models", 200),
        ("GET", "uia/status", 403),
        ("POST", "uia/keys", 403),
        ("GET", "api/kernels", 403),
        ("POST", "api/kernels", 403),
        ("GET", "api/contents", 403),
        ("POST", "api/terminals", 403),
        ("GET", "metrics", 403),
        ("POST", "api/shutdown", 403),
    ):
        async with session.request(
            method, jupyter.url + path, headers=key, json={}, allow_redirects=False
        ) as response:
            assert response.status in (status, 302 if status == 403 else status), (path, response.status)
            assert response.status != 302 or "login" in response.headers["Location"]
    async with session.delete(f"{jupyter.doors}keys/{made['id']}", headers=with_token()) as response:
        assert response.status == 200
    session.cookie_jar.clear()
    async with session.post(jupyter.doors + "v1/chat/completions", json=HELLO, headers=key) as response:
        assert response.status == 401


async def test_polling_is_no_activity_but_inference_is(jupyter, session):
    async def last_activity():
        async with session.get(jupyter.url + "api/status", headers=with_token()) as response:
            return (await response.json())["last_activity"]

    before = await last_activity()
    for path in ("status", "metrics", "backends"):
        async with session.get(jupyter.doors + path, headers=with_token()) as response:
            assert response.status == 200
    async with session.ws_connect(jupyter.doors + "ws/x", headers=with_token()) as ws:
        await ws.receive()
    assert await last_activity() == before
    url = jupyter.doors + "v1/chat/completions"
    async with session.post(url, json=HELLO, headers=with_token()) as response:
        assert response.status == 200
    assert await last_activity() > before


async def test_our_figures_are_on_jupyters_metrics_too(jupyter, session):
    async with session.get(jupyter.url + "metrics", headers=with_token()) as response:
        text = await response.text()
    assert 'uia_backend_routable{backend="echo",type="gpu"} 1.0' in text


async def test_a_bad_setting_leaves_jupyter_running(tmp_path, session):
    jupyter = launch(tmp_path, "--InferenceServiceConfig.queue_size=-3")
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                async with session.get(jupyter.url + "api/status", headers=with_token()) as response:
                    assert response.status == 200
                    break
            except aiohttp.ClientConnectionError:
                assert jupyter.process.poll() is None
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        assert "queue_size" in jupyter.log.read_text()
    finally:
        finish(jupyter)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A server whose authorizer lets everybody read and nothing else, and where one other origin may call."""
    jupyter = launch(
        tmp_path_factory.mktemp("strict"),
        "--ServerApp.authorizer_class=uia_test_helper.ReadOnly",
        "--ServerApp.allow_origin=http://good.example",
    )
    asyncio.run(listening(jupyter))
    yield jupyter
    finish(jupyter)
    assert "Traceback" not in jupyter.log.read_text()


async def test_the_authorizer_says_who_may_see_what_others_asked(strict, jupyter):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.timeout(30):
        async with session.post(strict.doors + "v1/chat/completions", json=HELLO) as response:
            assert response.status == 403
        # An administrator of the other server sees alice's request as soon as it is there.
        while True:
            async with session.get(jupyter.doors + "requests/req-of-alice") as response:
                if response.status == 200:
                    break
            await asyncio.sleep(0.05)
        async with session.get(strict.doors + "requests/req-of-alice") as response:
            assert response.status == 404
        async with session.get(strict.doors + "requests") as response:
            listed = (await response.json())["requests"]
        assert "alice" not in {item["principal"] for item in listed}


async def test_a_refusal_by_the_mount_is_a_403_everywhere(strict):
    async with aiohttp.ClientSession() as session:
        for path in ("requests", "requests/x", "status"):
            async with session.get(strict.doors + path, headers={"Host": "evil.example"}) as response:
                assert response.status == 403, path


async def test_a_preflight_is_answered(strict):
    asked = {"Origin": "http://good.example", "Access-Control-Request-Method": "POST"}
    async with (
        aiohttp.ClientSession() as session,
        session.options(strict.doors + "v1/chat/completions", headers=asked) as response,
    ):
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "http://good.example"
        assert "authorization" in response.headers["Access-Control-Allow-Headers"]


@pytest.fixture(scope="module")
def with_password(tmp_path_factory):
    """A server that has a password and no token, and that looks at its idleness all the time."""
    from jupyter_server.auth import passwd

    jupyter = launch(
        tmp_path_factory.mktemp("password"),
        "--IdentityProvider.token=",
        f"--PasswordIdentityProvider.hashed_password={passwd(TOKEN, 'sha1')}",
        token=None,
    )
    asyncio.run(listening(jupyter))
    yield jupyter
    finish(jupyter)


async def test_kernels_of_a_server_with_a_password_only(with_password, session):
    proof = await log_in(session, with_password)
    kernel_id, told = await start_kernel(session, with_password, proof)
    assert told["where"] == with_password.doors
    assert "echo" in told["backends"]
    async with session.delete(f"{with_password.url}api/kernels/{kernel_id}", headers=proof) as response:
        assert response.status == 204
    session.cookie_jar.clear()
    async with session.get(with_password.doors + "status", headers=with_token()) as response:
        assert response.status == 401


async def test_a_culled_server_lives_while_it_generates_and_no_longer_for_polling(tmp_path, session):
    jupyter = launch(tmp_path, "--ServerApp.shutdown_no_activity_timeout=2")
    try:
        await listening(jupyter)
        body = {"model": "endless", "messages": HELLO["messages"], "stream": True}
        async with session.post(
            jupyter.doors + "v1/chat/completions", json=body, headers=with_token()
        ) as response:
            until = time.monotonic() + 6
            while time.monotonic() < until:
                assert await response.content.readany()
            assert jupyter.process.poll() is None
        asked = 0
        async with asyncio.timeout(60):
            while jupyter.process.poll() is None:
                try:
                    async with session.get(jupyter.doors + "status", headers=with_token()) as response:
                        asked += response.status == 200
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        assert asked > 5
    finally:
        finish(jupyter)
    assert "shutting down" in jupyter.log.read_text()
