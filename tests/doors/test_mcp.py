"""The MCP door, asked by the official client in each of its modes."""

import asyncio
import contextlib
import json
import subprocess
import sys

import pytest
from mcp.client.streamable_http import MCP_SESSION_ID
from mcp.shared.exceptions import MCPError

from tests.doors.conftest import KEYS
from tests.upstreams.mcp_client import MODES, mcp_client
from uia_lab.dialects.mcp import ERROR, error_in
from uia_lab.domain.keys import Limits

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

TOOLS = {
    "list_inference_backends",
    "get_backend_status",
    "select_backend_for_inference",
    "route_inference_request",
    "get_supported_tasks",
}
ROUTE = "route_inference_request"


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def connect(house):
    return lambda key="admin", mode="auto", **options: mcp_client(
        house.server.url + "mcp", KEYS.get(key), mode, **options
    )


def asked(model="echo", inputs="a b c", **fields):
    return {"task": "text-generation", "model": model, "inputs": inputs, **fields}


async def test_the_five_tools_with_typed_results(house, connect, mode):
    async with connect(mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == TOOLS
        assert all(tool.output_schema["type"] == "object" for tool in tools.values())
        assert tools[ROUTE].input_schema["required"] == ["task", "inputs"]
        assert not tools[ROUTE].annotations.read_only_hint

        listed = await client.call_tool("list_inference_backends", {"task": "embedding"})
        assert [item["id"] for item in listed.structured_content["backends"]] == ["vectors"]
        status = (await client.call_tool("get_backend_status")).structured_content
        assert status["instance_id"] == house.manager.instance_id
        assert status["total_backends"] == 6
        chosen = await client.call_tool(
            "select_backend_for_inference", {"task": "text-generation", "model": "echo"}
        )
        assert chosen.structured_content["backend"]["id"] == "echo"
        reasons = {item["backend_id"]: item for item in chosen.structured_content["candidates"]}
        assert reasons["echo"]["kept"]
        assert not reasons["vectors"]["kept"]
        assert reasons["vectors"]["reason"]
        tasks = (await client.call_tool("get_supported_tasks")).structured_content["tasks"]
        assert tasks["text-embedding"] == ["org/vectors"]
        assert "echo" in tasks["text-generation"]


async def test_a_request_is_really_run_and_logged_like_any_other(house, connect, mode):
    async with connect("infer", mode=mode) as client:
        answer = (await client.call_tool(ROUTE, asked())).structured_content
        assert answer["result"] == "a b c "
        assert answer["backend"] == "echo"
        assert answer["attempts"] == [{"backend": "echo", "outcome": "ok"}]
        assert answer["usage"]["total_tokens"] > 0
        vectors = asked("org/vectors", ["ab", "c"]) | {"task": "embeddings"}
        assert (await client.call_tool(ROUTE, vectors)).structured_content["result"] == [
            [2, 1, 0.5],
            [1, 1, 0.5],
        ]
        chat = asked(inputs=[{"role": "user", "content": "in a chat"}])
        assert (await client.call_tool(ROUTE, chat)).structured_content["result"] == "in a chat "
    async with house.call("GET", f"requests/{answer['request_id']}", "infer") as response:
        record = await response.json()
    assert (record["outcome"], record["principal"], record["backend_id"]) == ("ok", "infer", "echo")
    assert house.manager.get_backend_status_report()["total_successful"] == 3


async def test_progress_carries_the_text_while_it_is_generated(house, connect, mode):
    pieces, begun = [], asyncio.Event()

    async def progress(count, total, message):
        pieces.append((count, message))
        begun.set()

    async with connect("infer", mode=mode) as client:
        call = asyncio.create_task(client.call_tool(ROUTE, asked(), progress_callback=progress))
        assert (await call).structured_content["result"] == "a b c "
        assert pieces == [(1, "a "), (2, "b "), (3, "c ")]
        begun.clear()
        call = asyncio.create_task(client.call_tool(ROUTE, asked("endless"), progress_callback=progress))
        await begun.wait()
        assert not call.done()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await house.until_idle()
    report = house.manager.get_backend_status_report()
    assert (report["total_cancelled"], report["total_successful"]) == (1, 1)


async def test_a_call_that_is_cancelled_frees_its_backend(house, connect, mode):
    async with connect("infer", mode=mode) as client:
        call = asyncio.create_task(client.call_tool(ROUTE, asked("gated")))
        await house.until_running()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await house.until_idle()
        assert house.manager.get_backend_status_report()["total_cancelled"] == 1
        # The session goes on.
        assert (await client.call_tool(ROUTE, asked())).structured_content["result"] == "a b c "


async def test_a_client_that_vanishes_cancels_what_it_asked_for(house, mode):
    body = {
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": ROUTE, "arguments": asked("gated")},
    }  # fmt: skip
    headers = {"Accept": "application/json, text/event-stream"}
    if mode == "legacy":
        hello = {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"},
        }  # fmt: skip
        greeting = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
        async with house.call("POST", "mcp", "infer", json=greeting, headers=headers) as response:
            assert response.status == 200
            headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
            headers["MCP-Protocol-Version"] = "2025-11-25"
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        async with house.call("POST", "mcp", "infer", json=ready, headers=headers) as response:
            assert response.status == 202
    else:
        headers |= {
            "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": ROUTE,
        }  # fmt: skip
        body["params"]["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        }
    call = asyncio.create_task(house.session.post(
        house.server.url + "mcp", json=body,
        headers=headers | {"Authorization": f"Bearer {KEYS['infer']}", "Connection": "close"},
    ))  # fmt: skip
    await house.until_running()
    if not call.done():
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    else:
        (await call).close()
    await house.until_idle()
    assert house.manager.get_backend_status_report()["total_cancelled"] == 1


async def test_resources_are_seen_by_whom_they_belong_to(house, connect, mode):
    async with connect("infer", mode=mode) as client:
        await client.call_tool(ROUTE, asked())
        assert [str(item.uri) for item in (await client.list_resources()).resources] == [
            "uia://requests/recent"
        ]
        mine = json.loads((await client.read_resource("uia://requests/recent")).contents[0].text)
        assert [item["outcome"] for item in mine["requests"]] == ["ok"]
        with pytest.raises(MCPError, match="needs the scope"):
            await client.read_resource("uia://backends")
        with pytest.raises(MCPError, match="there is no resource"):
            await client.read_resource("uia://nothing")
    async with connect("infer2", mode=mode) as client:
        others = await client.read_resource("uia://requests/recent", cache_mode="bypass")
        assert json.loads(others.contents[0].text) == {"requests": []}
    async with connect("admin", mode=mode) as client:
        everybody = json.loads((await client.read_resource("uia://requests/recent")).contents[0].text)
        assert [item["principal"] for item in everybody["requests"]] == ["infer"]
        backends = json.loads((await client.read_resource("uia://backends")).contents[0].text)
        assert {item["id"] for item in backends["backends"]} >= {"echo", "vectors"}


async def test_each_key_calls_what_it_is_for_and_sees_no_other_tool(connect, mode):
    async with connect("infer", mode=mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {ROUTE, "get_supported_tasks"}
        refused = await client.call_tool("get_backend_status")
        assert refused.is_error
        assert error_in(refused.meta)["code"] == "not_allowed"
    async with connect("read", mode=mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS - {ROUTE}
        assert (await client.call_tool(ROUTE, asked())).is_error


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        (ROUTE, asked("nobody-has-it"), "model_not_found", "nobody-has-it"),
        (ROUTE, {"task": "dance", "inputs": "x"}, "bad_request", "unknown task"),
        (ROUTE, {"task": "text-generation"}, "bad_request", "inputs"),
        (ROUTE, asked(modle="echo"), "bad_request", "modle"),
        (ROUTE, asked(timeout=-1), "bad_request", "timeout"),
        (ROUTE, asked(parameters={"temperature": 9}), "bad_request", "temperature"),
        (ROUTE, asked("breaks"), "stream_interrupted", "the wheel came off"),
        (ROUTE, asked("gated", timeout=0.05), "deadline_exceeded", ""),
        ("list_inference_backends", {"backend_type": "abacus"}, "bad_request", "abacus"),
        ("select_backend_for_inference", {"task": "dance"}, "bad_request", "unknown task"),
    ],
)
async def test_an_error_says_what_happened_and_carries_its_code(connect, tool, arguments, code, words):
    async with connect() as client:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert words in result.content[0].text
        assert result.meta[ERROR]["code"] == code


async def test_an_unexpected_error_shows_nothing_of_its_inside(house, connect, mode, monkeypatch, caplog):
    def fails():
        raise RuntimeError("secret detail")

    monkeypatch.setattr(house.manager, "get_backend_status_report", fails)
    async with connect(mode=mode) as client:
        with pytest.raises(MCPError, match="internal error") as caught:
            await client.call_tool("get_backend_status")
        assert "secret" not in str(caught.value.error)
        assert "secret detail" in caplog.text
        with pytest.raises(MCPError, match="there is no tool 'nothing'"):
            await client.call_tool("nothing")


async def test_the_hop_guard_knows_this_instance_and_long_ways(house, connect, mode):
    async with connect("infer", mode=mode) as client:
        for via in ([house.manager.instance_id], ["a", "b", "c", "d", "e"]):
            result = await client.call_tool(ROUTE, asked(), meta={"via": via})
            assert result.meta[ERROR]["code"] == "loop_detected"
        for via in ("a", [1], ["a"] * 17):
            result = await client.call_tool(ROUTE, asked(), meta={"via": via})
            assert result.meta[ERROR]["code"] == "bad_request"
        assert not (await client.call_tool(ROUTE, asked(), meta={"via": ["elsewhere"]})).is_error


async def test_limits_of_a_key_hold(house, connect):
    limits = Limits(models=("echo",), requests_per_minute=1)
    secret, _ = await house.service.keys.create("small", ["infer"], limits)
    async with mcp_client(house.server.url + "mcp", secret) as client:
        tasks = (await client.call_tool("get_supported_tasks")).structured_content["tasks"]
        assert tasks == {"text-generation": ["echo"]}
        assert not (await client.call_tool(ROUTE, asked())).is_error
        refused = await client.call_tool(ROUTE, asked("endless"))
        assert refused.meta[ERROR]["code"] == "not_allowed"
        limited = await client.call_tool(ROUTE, asked())
        assert limited.meta[ERROR]["code"] == "rate_limit_exceeded"
        assert limited.meta[ERROR]["retry_after"] > 0


async def test_a_session_serves_nobody_but_who_began_it(house, connect):
    headers = {"Accept": "application/json, text/event-stream"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    greeting = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
    async with house.call("POST", "mcp", "infer", json=greeting, headers=headers) as response:
        session = response.headers[MCP_SESSION_ID]
    headers |= {MCP_SESSION_ID: session, "MCP-Protocol-Version": "2025-11-25"}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    for key, status in (("infer", 200), ("infer2", 404), ("admin", 404)):
        async with house.call("POST", "mcp", key, json=ping, headers=headers) as response:
            assert response.status == status, key
    async with house.call("DELETE", "mcp", "infer2", headers=headers) as response:
        assert response.status == 404
    async with house.call("DELETE", "mcp", "infer", headers=headers) as response:
        assert response.status == 200
    async with house.call("POST", "mcp", "infer", json=ping, headers=headers) as response:
        assert response.status == 404


async def test_a_revoked_key_loses_what_it_has_under_way(house, connect, mode):
    secret, key = await house.service.keys.create("gone", ["infer"])
    async with mcp_client(house.server.url + "mcp", secret, mode) as client:
        call = asyncio.create_task(client.call_tool(ROUTE, asked("gated")))
        await house.until_running()
        await house.service.keys.revoke(key.id)
        await house.until_idle()
        results = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(results[0], MCPError) or results[0].is_error
        with pytest.raises(MCPError):
            await client.call_tool(ROUTE, asked())


@pytest.mark.parametrize("inputs", ["[" * 100 + "]" * 100, "[" + "{}," * 200_001 + "{}]"])
async def test_messages_that_are_deep_or_of_many_parts_are_refused(house, inputs):
    body = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"inputs":' + inputs + "}}}"
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    async with house.call("POST", "mcp", "infer", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "bad_request"


@pytest.mark.parametrize("body", ["", "nonsense", "[]", "{}", '{"jsonrpc":"2.0","id":1,"method":"no/such"}'])
@pytest.mark.parametrize("version", [None, "2025-11-25", "2026-07-28", "nonsense"])
async def test_what_is_no_message_is_answered_as_the_protocol_says(house, body, version):
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    headers |= {"MCP-Protocol-Version": version} if version else {}
    async with house.call("POST", "mcp", "infer", data=body, headers=headers) as response:
        assert 400 <= response.status < 500
        assert "error" in await response.json()


async def test_the_door_can_be_switched_off(house):
    house.service.config.enable_mcp = False
    async with house.call("POST", "mcp", json={}) as response:
        assert response.status == 404
        assert "enable_mcp" in (await response.json())["error"]["message"]


async def test_the_server_stops_with_sessions_and_calls_open(house, connect, mode):
    async with connect(mode=mode) as client:
        call = asyncio.create_task(client.call_tool(ROUTE, asked("gated")))
        await house.until_running()
        async with asyncio.timeout(10):
            await house.server.stop()
        results = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(results[0], Exception) or results[0].is_error
    await house.until_idle()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-mcp")]


async def test_a_first_request_while_the_server_stops_begins_nothing(house):
    house.server.application.settings["uia_open_doors"].closing = True
    async with house.call("POST", "mcp", json={}) as response:
        assert response.status == 503
    assert "uia_mcp" not in house.server.application.settings


async def test_a_server_that_stops_at_its_first_request_leaves_nothing(house):
    call = asyncio.create_task(house.session.post(
        house.server.url + "mcp", json={}, headers={"Authorization": f"Bearer {KEYS['infer']}"}
    ))  # fmt: skip
    async with asyncio.timeout(20):
        while not len(house.server.application.settings["uia_open_doors"]):
            await asyncio.sleep(0)
        await house.server.stop()
        await asyncio.gather(call, return_exceptions=True)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("uia-mcp")]


async def test_a_slow_reader_loses_its_connection_and_its_request(house):
    """A client that asks for progress and reads none of it holds nobody up for ever."""
    async with asyncio.timeout(30):
        _, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
        body = json.dumps(
            {
                "jsonrpc": "2.0", "id": 1, "method": "tools/call",
                "params": {
                    "name": ROUTE, "arguments": asked("endless"),
                    "_meta": {
                        "progressToken": 1,
                        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                        "io.modelcontextprotocol/clientCapabilities": {},
                        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
                    },
                },
            }
        ).encode()  # fmt: skip
        lines = (
            "POST /mcp HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {KEYS['infer']}",
            "Content-Type: application/json", "Accept: application/json, text/event-stream",
            "MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call", f"Mcp-Name: {ROUTE}",
            f"Content-Length: {len(body)}", "", "",
        )  # fmt: skip
        writer.write("\r\n".join(lines).encode() + body)
        await house.until_running()
        await house.until_idle()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert house.manager.get_backend_status_report()["total_cancelled"] == 1


def test_the_sdk_is_imported_by_nobody_who_does_not_use_the_door():
    code = (
        "import sys, uia_lab.unified_inference_service as _;"
        "print('mcp' in sys.modules, 'pydantic' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.split() == ["False", "False"]
