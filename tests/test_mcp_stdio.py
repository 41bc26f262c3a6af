"""``python -m uia_lab mcp`` as a client starts it: with a service of its own, and speaking for a server."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from tests.upstreams.mcp_client import MODES
from tests.upstreams.uia_server import KEY, uia_servers
from uia_lab.dialects.mcp import ERROR

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

ROOT = Path(__file__).parents[1]
ROUTE = "route_inference_request"


@pytest.fixture
async def server():
    async with uia_servers() as make:
        yield await make()


def started(folder, **variables):
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "uia_lab", "mcp"],
        env={
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "jupyter_server_extension"))),
            "JUPYTER_DATA_DIR": str(folder), "JUPYTER_NO_CONFIG": "1", "UIA_STORE_PATH": ":memory:",
            "UIA_DISCOVERY_PORTS": "", **variables,
        },
        cwd=folder,
    )  # fmt: skip


async def test_no_proxy_of_the_environment_hears_the_token(server, tmp_path):
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1")
    parameters = started(tmp_path, UIA_LAB_URL=server.url, UIA_LAB_TOKEN=KEY, **proxy)
    async with Client(parameters) as client:
        assert len((await client.list_tools()).tools) == 5


@pytest.mark.parametrize("mode", MODES)
async def test_it_speaks_for_the_server_of_its_environment(server, tmp_path, mode):
    parameters = started(tmp_path, UIA_LAB_URL=server.url, UIA_LAB_TOKEN=KEY)
    pieces = []

    async def progress(count, total, message):
        pieces.append(message)

    async with Client(parameters, mode=mode) as client:
        assert len((await client.list_tools()).tools) == 5
        asked = {"task": "chat", "model": "echo", "inputs": "a b"}
        answer = await client.call_tool(ROUTE, asked, progress_callback=progress)
        assert answer.structured_content["result"] == "a b "
        assert pieces == ["a ", "b "]
        looped = await client.call_tool(ROUTE, asked, meta={"via": [server.manager.instance_id]})
        assert looped.meta[ERROR]["code"] == "loop_detected"
        assert len((await client.list_resources()).resources) == 2
        assert "echo" in (await client.read_resource("uia://backends")).contents[0].text

        call = asyncio.create_task(client.call_tool(ROUTE, asked | {"model": "gated"}))
        async with asyncio.timeout(20):
            while not server.manager.running:
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            while server.manager.running:
                await asyncio.sleep(0.01)
    assert server.manager.get_backend_status_report()["total_cancelled"] == 1


async def test_without_a_server_it_runs_a_service_of_its_own(tmp_path):
    async with Client(started(tmp_path)) as client:
        status = (await client.call_tool("get_backend_status")).structured_content
        assert status["total_requests"] == 0
        tasks = (await client.call_tool("get_supported_tasks")).structured_content
        assert tasks["instance_id"] == status["instance_id"]


async def test_a_wrong_token_is_said_and_nothing_is_served(server, tmp_path):
    parameters = started(tmp_path, UIA_LAB_URL=server.url, UIA_LAB_TOKEN="uia-not-one-of-them")
    process = await asyncio.create_subprocess_exec(
        parameters.command, *parameters.args, env=os.environ | parameters.env, cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert out == b""
    assert b"does not take the token" in err
    assert b"uia-not-one-of-them" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_though_stdin_stays_open(tmp_path, number):
    parameters = started(tmp_path)
    process = await asyncio.create_subprocess_exec(
        parameters.command, *parameters.args, env=os.environ | parameters.env, cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
    async with asyncio.timeout(60):
        assert await process.stdout.readline()
        process.send_signal(number)
        assert await process.wait() == 0
    process.stdin.close()
