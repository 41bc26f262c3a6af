"""A kernel finds its server, or says why it cannot: real Jupyter servers of every kind."""

import asyncio
import json

import aiohttp
import pytest

from tests.server_extension.jupyter_process import (
    EXTENSIONS,
    TOKEN,
    finish,
    launch,
    listening,
    start_kernel,
    with_token,
)
from uia_lab.domain.errors import BadRequest
from uia_lab.notebook import finding
from uia_lab.notebook.connect import connect, forget
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab

PASSWORD = "argon2:$argon2id$v=19$m=10240,t=10,p=8$MDEyMzQ1Njc4OWFiY2RlZg$AAAAAAAAAAAAAAAAAAAAAA"
OFF = EXTENSIONS | {"uia_lab_server": False, "uia_test_helper": False}


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """Launches servers; what this process knows of servers is what their runtime folder says."""
    for name in ("UIA_LAB_URL", "UIA_LAB_TOKEN", "JUPYTERHUB_SERVICE_URL", "JUPYTERHUB_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    launched = []

    def make(*options, **how):
        made = launch(tmp_path_factory.mktemp("jupyter"), *options, **how)
        launched.append(made)
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(made.folder / "runtime"))
        monkeypatch.setenv("JPY_PARENT_PID", str(made.process.pid))
        return made

    yield make
    forget()
    for made in launched:
        finish(made)


async def answering(jupyter):
    """Waits until the server answers anything."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            assert jupyter.process.poll() is None, jupyter.log.read_text()
            try:
                async with session.get(jupyter.url + "api/status", headers=with_token()) as response:
                    await response.read()
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def found():
    return await asyncio.to_thread(finding.find)


async def test_the_server_that_started_this_kernel(server):
    jupyter = server()
    await listening(jupyter)
    place, why = await found()
    assert (place.url, place.token, why) == (jupyter.doors, TOKEN, "")
    assert TOKEN not in repr(place)
    lab = await asyncio.to_thread(connect)
    assert lab.where == jupyter.doors
    await asyncio.to_thread(forget)


async def test_an_extension_that_is_not_enabled(server):
    jupyter = server(extensions=OFF)
    await answering(jupyter)
    place, why = await found()
    assert place is None
    assert "jupyter server extension enable" in why
    assert jupyter.url in why
    with pytest.raises(ConnectionError, match="extension"):
        await asyncio.to_thread(lambda: Lab(HttpTransport(jupyter.doors, TOKEN)))


async def test_local_mode_says_why_a_server_was_not_taken(server, monkeypatch):
    monkeypatch.setattr(
        finding, "_places", lambda: iter([finding.Place("http://127.0.0.1:1/uia/", None, "X")])
    )
    from uia_lab.notebook.connect import _transport

    transport = await asyncio.to_thread(_transport, None, None)
    assert transport.where == "this kernel (local mode); X does not answer"


async def test_a_server_with_a_password_only(server):
    jupyter = server(f"--PasswordIdentityProvider.hashed_password={PASSWORD}", token="")
    await listening(jupyter)
    place, why = await found()
    assert place is None
    assert "password" in why
    assert "lab.keys.create" in why


async def test_a_kernel_of_a_server_with_a_password_only_is_let_in(server):
    jupyter = server(
        f"--PasswordIdentityProvider.hashed_password={PASSWORD}", "--ServerApp.token=for-the-test"
    )
    await listening(jupyter)
    async with aiohttp.ClientSession() as session:
        _, told = await start_kernel(session, jupyter, with_token("for-the-test"))
    assert told["where"] == jupyter.doors


async def test_behind_a_hub(server, monkeypatch):
    jupyter = server()
    await listening(jupyter)
    # A server of the hub's has no token in its file, and the kernel the hub's variables.
    (file,) = (jupyter.folder / "runtime").glob("jpserver-*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"token": ""}))
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", TOKEN)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_URL", jupyter.url.replace("127.0.0.1", "0.0.0.0"))
    assert (await found())[0].token == TOKEN
    # A kernel that was not started by the server itself.
    monkeypatch.delenv("JPY_PARENT_PID")
    place, _ = await found()
    assert (place.url, place.token) == (jupyter.doors, TOKEN)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "revoked")
    place, why = await found()
    assert place is None
    assert "JupyterHub server" in why
    assert "revoked" not in why


async def test_a_running_server_that_lists_this_kernel(server, monkeypatch):
    jupyter = server()
    await listening(jupyter)
    monkeypatch.delenv("JPY_PARENT_PID")
    async with aiohttp.ClientSession(headers=with_token()) as session:
        body = {"path": "x.ipynb", "name": "x", "type": "notebook", "kernel": {"name": "telling"}}
        async with session.post(jupyter.url + "api/sessions", json=body) as response:
            assert response.status == 201
            kernel = (await response.json())["kernel"]["id"]
    monkeypatch.setattr(finding, "_kernel_id", lambda: kernel)
    assert (await found())[0].url == jupyter.doors
    monkeypatch.setattr(finding, "_kernel_id", lambda: "another")
    assert await found() == (None, "")


async def test_a_unix_socket(server, tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("s") / "jupyter.sock"
    jupyter = server("--ServerApp.sock_mode=0600", sock=path)
    async with asyncio.timeout(60):
        while not list((jupyter.folder / "runtime").glob("jpserver-*.json")) or not path.exists():
            assert jupyter.process.poll() is None, jupyter.log.read_text()
            await asyncio.sleep(0.05)
        while (await found())[0] is None:
            await asyncio.sleep(0.1)
    place, _ = await found()
    assert place.url.startswith("http+unix://")
    lab = await asyncio.to_thread(connect)
    assert lab.where == place.url
    answer = await asyncio.to_thread(lambda: lab.generate("hi there", model="echo", show=False))
    assert answer.text == "hi there"
    # A kernel of that server is told the same.
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession(connector=connector) as session:
        jupyter.url = "http://localhost/nb/"
        _, told = await start_kernel(session, jupyter, with_token())
    assert told["where"] == place.url
    assert "echo" in told["backends"]
    with pytest.raises(BadRequest, match="UNIX socket"):
        lab.serve(model="f")(lambda inputs: "x")
    await asyncio.to_thread(forget)


async def test_what_is_left_of_a_server_that_has_gone(server, monkeypatch):
    jupyter = server()
    await listening(jupyter)
    jupyter.process.kill()
    jupyter.process.wait()
    place, why = await found()
    assert place is None
    assert "does not answer" in why
    (file,) = (jupyter.folder / "runtime").glob("jpserver-*.json")
    file.write_text("{")
    assert await found() == (None, "")
