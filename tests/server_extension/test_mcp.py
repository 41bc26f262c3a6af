"""The MCP door inside a real Jupyter server: its token, its cookie, our keys, and nobody else."""

import asyncio

import aiohttp
import pytest
from mcp.shared.exceptions import MCPError

from tests.server_extension.jupyter_process import TOKEN, finish, launch, listening, log_in, with_token
from tests.upstreams.mcp_client import MODES, mcp_client
from uia_lab.dialects.mcp import ERROR

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

ROUTE = "route_inference_request"
ECHO = {"task": "text-generation", "model": "echo", "inputs": [{"role": "user", "content": "hi there"}]}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    jupyter = launch(tmp_path_factory.mktemp("jupyter"), "--ServerApp.allow_unauthenticated_access=False")
    asyncio.run(listening(jupyter))
    yield jupyter
    finish(jupyter)
    text = jupyter.log.read_text()
    # sse_starlette tells of a client that leaves while the server stops; nothing of ours is to be in it.
    assert "Traceback" not in text or "sse_starlette" in text
    assert TOKEN not in text


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


@pytest.mark.parametrize("mode", MODES)
async def test_the_official_client_under_jupyters_token(jupyter, mode):
    pieces = []

    async def progress(count, total, message):
        pieces.append(message)

    async with mcp_client(jupyter.doors + "mcp", TOKEN, mode) as client:
        assert len((await client.list_tools()).tools) == 5
        answer = await client.call_tool(ROUTE, ECHO, progress_callback=progress)
        assert answer.structured_content["result"] == "hi there"
        assert pieces == ["hi there"]
        assert "echo" in (await client.read_resource("uia://backends")).contents[0].text
        assert (await client.read_resource("uia://requests/recent")).contents[0].text
        call = asyncio.create_task(client.call_tool(ROUTE, ECHO | {"model": "endless"}))
        async with asyncio.timeout(20):
            while not (await status(client))["in_flight"]:
                await asyncio.sleep(0.02)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            while (await status(client))["in_flight"]:
                await asyncio.sleep(0.02)


async def status(client):
    return (await client.call_tool("get_backend_status")).structured_content


@pytest.mark.parametrize("mode", MODES)
async def test_a_scoped_key_does_what_it_is_for(jupyter, session, mode):
    body = {"name": f"for-mcp-{mode}", "scopes": ["infer"], "models": ["echo"]}
    async with session.post(jupyter.doors + "keys", json=body, headers=with_token()) as response:
        key = (await response.json())["key"]
    async with mcp_client(jupyter.doors + "mcp", key, mode) as client:
        assert (await client.call_tool(ROUTE, ECHO)).structured_content["result"] == "hi there"
        refused = await client.call_tool(ROUTE, ECHO | {"model": "endless"})
        assert refused.meta[ERROR]["code"] == "not_allowed"


@pytest.mark.parametrize("key", [None, "uia-not-one-of-ours-at-all"])
async def test_without_an_identity_the_door_is_shut(jupyter, session, key):
    headers = ACCEPT | ({"Authorization": f"Bearer {key}"} if key else {})
    for method in ("GET", "POST", "DELETE"):
        async with session.request(method, jupyter.doors + "mcp", json=HELLO, headers=headers) as response:
            assert response.status == 401, method
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
    with pytest.raises((MCPError, ExceptionGroup)):
        async with mcp_client(jupyter.doors + "mcp", key):
            pass


async def test_a_page_in_a_browser_needs_its_own_origin_and_token(jupyter, session):
    proof = await log_in(session, jupyter)
    for headers, answer in (
        (proof, 200),
        ({}, 403),
        (proof | {"Origin": "http://evil.example"}, 403),
        (proof | {"Host": "evil.example"}, 403),
    ):
        async with session.post(jupyter.doors + "mcp", json=HELLO, headers=ACCEPT | headers) as response:
            assert response.status == answer, (headers, await response.text())
    # Jupyter's token is explicit: no browser sends it on its own.
    async with aiohttp.ClientSession() as fresh:
        headers = ACCEPT | with_token() | {"Origin": "http://elsewhere.example"}
        async with fresh.post(jupyter.doors + "mcp", json=HELLO, headers=headers) as response:
            assert response.status == 200
