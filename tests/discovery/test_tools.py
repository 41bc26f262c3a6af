"""Command-line tools on a PATH of our own: found, listed with a reason, gone again."""

import pytest

from uia_lab.access.secrets import Secrets
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.surroundings import House
from uia_lab.config import InferenceServiceConfig
from uia_lab.discovery.tools import ToolDiscovery
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import BadRequest
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService


@pytest.fixture
def path(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def install(path):
    def install(name, body="echo $(basename $0) 1.2.3"):
        program = path / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        return program

    return install


@pytest.fixture
async def discover(manager):
    makers = []

    def discover(*names):
        makers.append(CliMaker(Secrets(environ={}), House("uia-me")))
        return ToolDiscovery(manager, makers[-1], names)

    yield discover
    await manager.aclose()
    for maker in makers:
        await maker.close()


async def test_what_is_on_path_is_registered_and_chosen_only_when_named(discover, manager, install):
    program = install("claude")
    (found,) = await discover().look()
    assert (found.provider, found.type, found.endpoint) == ("claude", "cli", str(program))
    assert (found.backend_id, found.usable, found.reason) == ("claude-cli", True, "claude 1.2.3")
    info = manager.get_backend("claude-cli")
    assert (info.status, info.max_concurrency) == (BackendStatus.HEALTHY, 1)
    assert info.models == {"claude-cli", "claude-cli/*"}
    assert manager.explain("text-generation").winner is None
    assert manager.explain("text-generation", "claude-cli/opus").winner == "claude-cli"


async def test_what_cannot_be_used_is_listed_with_its_reason(discover, manager, install, path):
    install("codex", "echo no such library >&2; exit 127")
    install("gemini").chmod(0o777)
    found = {item.provider: item for item in await discover("openai_cli", "gemini_cli", "claude_cli").look()}
    assert "no such library" in found["codex"].reason
    assert "anybody can write" in found["gemini"].reason
    assert found["claude"].reason == "is not on the server's PATH"
    assert not any(item.usable or item.backend_id for item in found.values())
    assert manager.list_backends() == []


async def test_the_setting_narrows_it(discover, manager, install):
    install("claude")
    install("gemini")
    assert [item.provider for item in await discover("gemini_cli").look()] == ["gemini"]
    with pytest.raises(BadRequest, match="no known tool"):
        discover("clod")


async def test_a_tool_that_goes_is_taken_out_and_comes_back(discover, manager, install):
    program = install("claude")
    discovery = discover()
    await discovery.look()
    program.unlink()
    assert await discovery.look() == []
    assert manager.get_backend("claude-cli") is None
    install("claude", "echo claude 2.0.0")
    (found,) = await discovery.look()
    assert (found.usable, found.reason) == (True, "claude 2.0.0")


async def test_what_somebody_removed_stays_removed(discover, manager, install):
    install("claude")
    discovery = discover()
    await discovery.look()
    manager.unregister_backend("claude-cli")
    (found,) = await discovery.look()
    assert (found.backend_id, found.usable) == (None, False)
    assert "was removed" in found.reason


async def test_a_relative_entry_of_path_is_passed_over(discover, install, path, monkeypatch):
    install("claude")
    monkeypatch.chdir(path)
    monkeypatch.setenv("PATH", ".:/usr/bin:/bin")
    assert await discover().look() == []


async def test_it_is_a_part_of_the_service(install, monkeypatch):
    install("claude")
    monkeypatch.setenv("UIA_ENABLE_CLI_BACKENDS", "True")
    config = InferenceServiceConfig(enable_hf_server=False, store_path=":memory:")
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    async with service:
        assert service.parts["cli_backends"]["state"] == "running"
        assert [item.provider for item in await service.tools.look()] == ["claude"]
        assert [item.provider for item in service.found()] == ["claude"]
    assert service.tools is None
    config = InferenceServiceConfig(enable_hf_server=False, store_path=":memory:", cli_backends=["clod"])
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    async with service:
        assert service.parts["cli_backends"]["state"] == "failed"
        assert "clod" in service.parts["cli_backends"]["reason"]
    config = InferenceServiceConfig(enable_cli_backends=False, enable_hf_server=False, store_path=":memory:")
    service = UnifiedInferenceService(config, manager=BackendManager(config))
    async with service:
        assert service.parts["cli_backends"]["state"] == "off"
        assert service.tools is None
