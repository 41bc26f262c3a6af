"""Command-line tools over the wire: who may add one, who may use one, and the key of a call."""

import asyncio
import sys
import uuid
from pathlib import Path

import pytest

from tests.doors.test_key_doors import chat, made, using
from uia_lab.domain.backends import BackendStatus
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

FAKE = str(Path(__file__).parents[1] / "upstreams" / "fake_cli.py")
# What a tool does that comes back to us with the key of its call.
BACK = """
import json, os, sys, urllib.error, urllib.request
body = json.dumps({"model": sys.argv[1], "messages": [{"role": "user", "content": "again"}]})
request = urllib.request.Request(os.environ["UIA_LAB_URL"] + "v1/chat/completions", body.encode(), {
    "Authorization": "Bearer " + os.environ["UIA_LAB_TOKEN"], "Content-Type": "application/json"})
try:
    answer = urllib.request.urlopen(request)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    monkeypatch.setenv("UIA_ENABLE_CLI_BACKENDS", "True")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def fake(behaviour, **options):
    return {"command": [sys.executable, FAKE, behaviour, uuid.uuid4().hex], **options}


async def added(house, options, key=None, **fields):
    body = {"type": "cli", "options": options, **fields}
    asked = (
        house.call("POST", "backends", json=body)
        if key is None
        else using(house, key, "POST", "backends", json=body)
    )
    async with asked as response:
        return response.status, await response.json()


async def test_one_is_added_serves_is_kept_and_is_removed(house):
    status, backend = await added(house, fake("echo"), id="mine", name="Mine")
    assert (status, backend["status"], backend["max_concurrency"]) == (201, "healthy", 1)
    assert (backend["endpoint"], backend["type"]) == (sys.executable, "cli")
    async with house.chat("mine/whatever", key="admin", text="a b", stream=False) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "a b "
        assert response.headers["x-uia-backend"] == "mine"
    await house.service.stop()
    config = house.service.config
    again = UnifiedInferenceService(config, manager=BackendManager(config))
    async with again:
        manager = again.get_backend_manager()
        assert manager.get_backend("mine").status is BackendStatus.UNKNOWN
        assert (await manager.infer("chat", "mine", "c d")).text == "c d "
        assert await again.backends.remove("mine")
        assert await again.kept.store.backends.load() == {}


async def test_a_scoped_key_cannot_have_a_command_run(house):
    admin = await made(house, "admin", ["admin"])
    for options in (
        fake("echo"),
        {"tool": "llm", "arguments": ["-x"]},
        {"tool": "llm", "environment": {"LLM_USER_PATH": "/x"}},
    ):
        status, body = await added(house, options, key=admin, id="mine")
        assert (status, body["error"]["code"]) == (403, "not_allowed")
        assert "cannot have this machine run a command" in body["error"]["message"]
    hybrid = {"parts": [{"type": "cli", "options": fake("echo")}, {"type": "cli", "options": fake("echo")}]}
    async with using(
        house, admin, "POST", "backends", json={"type": "hybrid", "options": hybrid}
    ) as response:
        assert response.status == 403
    infer = await made(house, "infer", ["infer", "read"])
    assert (await added(house, {"tool": "llm"}, key=infer))[0] == 403
    # By name it may add what the house knows, if it is there.
    status, body = await added(house, {"tool": "llm"}, key=admin)
    assert (status, body["error"]["param"]) == (400, "options.command")
    assert house.manager.get_backend("mine") is None


async def test_a_key_uses_tools_only_where_it_says_so(house):
    await added(house, fake("echo"), id="mine")
    async with chat(house, await made(house, "plain"), "mine") as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (403, "not_allowed")
    async with chat(house, await made(house, "tools", backend_types=["cli"]), "mine") as response:
        assert response.status == 200
    async with chat(house, await made(house, "admin", ["admin"]), "mine") as response:
        assert response.status == 200
    # An alias leads no further, and neither does a hybrid.
    await house.service.kept.set_alias("smart", ["mine"])
    async with chat(house, await made(house, "other"), "smart") as response:
        assert response.status == 403
    parts = [{"type": "cli", "options": fake("echo")}, {"type": "cli", "options": fake("echo")}]
    body = {"type": "hybrid", "id": "both", "models": ["m"], "options": {"parts": parts}}
    async with house.call("POST", "backends", json=body) as response:
        assert response.status == 201, await response.text()
    async with chat(house, await made(house, "third"), "m") as response:
        assert response.status == 503
        assert "does not permit command-line tools" in (await response.json())["error"]["message"]


async def test_a_tool_that_comes_back_is_refused_as_a_loop(house):
    house.service.door_url = house.server.url
    before = len(house.service.keys)
    for model in ("mine", "echo"):
        command = {"command": [sys.executable, "-c", BACK, model]}
        await added(house, command, id="mine")
        async with house.chat("mine", key="admin") as response:
            said = (await response.json())["choices"][0]["message"]["content"]
        status, _, error = said.partition(" ")
        assert status == "508"
        assert "loop_detected" in error
        assert house.manager.instance_id in error
        await house.service.backends.remove("mine")
    assert len(house.service.keys) == before
    report = house.manager.get_backend_status_report()
    assert (report["total_requests"], report["total_successful"], report["total_failed"]) == (4, 2, 0)
    assert report["total_rejected"] == 2


async def test_what_a_call_had_passed_is_passed_on(house):
    house.service.door_url = house.server.url
    await added(house, fake("environment"), id="mine")
    async with house.chat("mine", key="admin", headers={"x-uia-via": "uia-far"}) as response:
        said = (await response.json())["choices"][0]["message"]["content"]
    assert f'"UIA_LAB_VIA": "uia-far,{house.manager.instance_id}"' in said


async def test_the_key_of_a_call_ends_its_socket_too(house):
    house.service.door_url = house.server.url
    await added(house, fake("hang"), id="mine")
    asking = asyncio.create_task(house.manager.infer("chat", "mine", "hi"))
    async with asyncio.timeout(20):
        while not (lent := [item for item in house.service.keys._own.values() if item.via]):
            await asyncio.sleep(0.01)
    assert lent[0].scopes == {"infer"}
    house.manager.cancel(next(iter(house.manager.running)))
    with pytest.raises(Exception, match="cancelled"):
        await asking
    assert not [item for item in house.service.keys._own.values() if item.via]


async def test_those_of_the_configuration_are_there_at_each_start(monkeypatch):
    from uia_lab.config import InferenceServiceConfig

    backends = [
        {"id": "mine", "type": "cli", "options": fake("echo")},
        {"type": "cli", "options": {"command": ["no-such-program"]}},
        {"id": "odd", "colour": "green"},
    ]
    config = InferenceServiceConfig(
        enable_hf_server=False, store_path=":memory:", enable_api_backends=False, backends=backends
    )
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    async with service:
        assert (await service.get_backend_manager().infer("chat", "mine", "a b")).text == "a b "
        part = service.parts["backends"]
        assert part["state"] == "failed"
        assert "no-such-program" in part["reason"]
        assert "odd" in part["reason"]
        assert "registered: mine" in part["reason"]
        assert await service.kept.store.backends.load() == {}


async def test_where_tools_are_switched_off_none_is_added_or_restored(house, monkeypatch, caplog):
    await added(house, fake("echo"), id="mine")
    await house.service.stop()
    config = house.service.config
    config.enable_cli_backends = False
    again = UnifiedInferenceService(config, manager=BackendManager(config))
    async with again:
        assert again.get_backend_manager().get_backend("mine") is None
        assert "kept but not registered" in caplog.text
        assert again.parts["cli_backends"]["state"] == "off"
