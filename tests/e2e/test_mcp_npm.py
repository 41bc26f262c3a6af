"""MCP with programs that others wrote in JavaScript: the inspector at our door, a server as our backend."""

import asyncio
import collections
import json
import os

import psutil
import pytest

from tests.e2e.npm import installed
from tests.server_extension.jupyter_process import TOKEN, finish, launch, listening
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendCapabilities, BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
ECHO = {"text-generation": {"tool": "echo", "arguments": {"message": "$prompt"}}}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("npm"), EVERYTHING, INSPECTOR)


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    jupyter = launch(tmp_path_factory.mktemp("jupyter"))
    asyncio.run(listening(jupyter))
    yield jupyter
    finish(jupyter)


@pytest.fixture
async def service():
    config = InferenceServiceConfig(
        enable_hf_server=False, enable_api_backends=False, load_balancing_strategy="round_robin",
        store_path=":memory:", backend_health_check_interval=1.0,
    )  # fmt: skip
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    await service.start(listen=False)
    yield service
    await service.stop()


async def inspect(program, jupyter, tmp_path, era, *arguments, token=TOKEN):
    process = await asyncio.create_subprocess_exec(
        *program("mcp-inspector"), "--cli", jupyter.doors + "mcp", "--transport", "http",
        *(("--header", f"Authorization: Bearer {token}") if token else ("--stored-auth-only",)),
        "--protocol-era", era, "--format", "json", *arguments,
        env=os.environ | {"HOME": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("era", ["legacy", "auto", "modern"])
async def test_the_inspector_at_the_door_of_jupyter(program, jupyter, tmp_path, era):
    status, out, err = await inspect(program, jupyter, tmp_path, era, "--method", "tools/list", "--strict")
    assert status == 0, err
    assert len(found(out)["tools"]) == 5
    asked = {"task": "chat", "model": "echo", "inputs": [{"role": "user", "content": "hi"}]}
    status, out, err = await inspect(
        program, jupyter, tmp_path, era, "--method", "tools/call", "--tool-name", "route_inference_request",
        "--tool-args-json", json.dumps(asked),
    )  # fmt: skip
    assert status == 0, err
    assert found(out)["structuredContent"]["result"] == "hi"
    status, out, err = await inspect(
        program, jupyter, tmp_path, era, "--method", "resources/read", "--uri", "uia://requests/recent"
    )
    assert status == 0, err
    assert json.loads(found(out)["contents"][0]["text"])["requests"]


async def test_the_inspector_without_a_token_is_refused(program, jupyter, tmp_path):
    status, out, err = await inspect(program, jupyter, tmp_path, "auto", "--method", "tools/list", token=None)
    assert status != 0
    assert "tools" not in out, err


def found(out):
    shown = json.loads(out)
    return shown.get("result", shown)


async def test_server_everything_shares_requests_dies_and_recovers(program, service):
    manager = service.get_backend_manager()
    manager.register_backend(
        "here", "gpu", "Here", lambda inputs: inputs, BackendCapabilities({"chat"}, {"everything"})
    )
    command = [*program("mcp-server-everything"), "stdio"]
    description = BackendDescription(
        id="everything", type="mcp", options={"command": command, "tools": ECHO}, models=("everything",)
    )
    info = await service.backends.add(description)
    assert info.status is BackendStatus.HEALTHY, info.reason
    served = collections.Counter()
    for _ in range(6):
        answer = await manager.infer("chat", "everything", "hello")
        served[answer.backend_id] += 1
        assert answer.result == ("Echo: hello" if answer.backend_id == "everything" else "hello")
    assert served == {"here": 3, "everything": 3}

    [process] = children()
    process.kill()
    await manager.probe("everything")
    async with asyncio.timeout(60):
        while manager.get_backend("everything").status is not BackendStatus.HEALTHY:
            await asyncio.sleep(0.05)
    again = await manager.infer("chat", "everything", "hello", backend_id="everything")
    assert again.result == "Echo: hello"
    await service.stop()
    assert children() == []


def children():
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "mcp-server-everything" in " ".join(child.cmdline())
    ]
