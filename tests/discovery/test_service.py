"""Discovery as a part of the service: found, listed, asked by an official client, and stopped."""

import asyncio
import threading

import openai
import pytest

from tests.upstreams.llamacpp_server import ALIAS, LlamaCppServer
from uia_lab.access.principals import Principal
from uia_lab.config import ConfigError, InferenceServiceConfig
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.unified_inference_service import UnifiedInferenceService

SECRET = "uia-test-key-of-the-admin"


def service_with(**settings):
    config = InferenceServiceConfig(
        enable_hf_server=settings.pop("enable_hf_server", False),
        hf_enable_hardware_detection=False,
        hf_auto_discover_skills=False,
        hf_server_port=0,
        store_path=":memory:",
        **settings,
    )
    return UnifiedInferenceService(config, manager=BackendManager(config))


async def until_found(service):
    async with asyncio.timeout(30):
        while not any(item.usable for item in service.apis.found()):
            await asyncio.sleep(0.02)


async def test_the_openai_client_talks_through_us_to_a_server_that_was_found(models):
    pytest.importorskip("xllamacpp")
    async with LlamaCppServer(models.path("smollm2")) as server:
        service = service_with(enable_hf_server=True, discovery_ports=[server.port])
        service.keys.add(SECRET, Principal("admin", frozenset({"admin"})))
        async with service:
            await until_found(service)
            url = service.get_hf_server().url
            async with openai.AsyncOpenAI(api_key=SECRET, base_url=f"{url}v1") as client:
                assert ALIAS in [model.id async for model in client.models.list()]
                messages = [{"role": "user", "content": "Say hello."}]
                asked = {"model": ALIAS, "messages": messages, "temperature": 0, "max_tokens": 8}
                whole = await client.chat.completions.create(**asked)
                assert whole.usage.completion_tokens == 8
                stream = await client.chat.completions.create(
                    **asked, stream=True, stream_options={"include_usage": True}
                )
                chunks = [chunk async for chunk in stream]
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                assert text == whole.choices[0].message.content
                assert chunks[-1].usage.completion_tokens == 8
                with pytest.raises(openai.NotFoundError, match="not served here"):
                    await client.chat.completions.create(**{**asked, "model": "gpt-5"})


async def test_its_part_says_what_it_does_and_nothing_is_left():
    before = {thread.name for thread in threading.enumerate()}
    service = service_with(discovery_ports=[9])
    async with service:
        part = service.parts["api_backends"]
        assert part["state"] == "running"
        assert "ports of this machine (9)" in part["reason"]
        await service.apis.look()
        assert service.apis.found() == []
    assert service.apis is None
    assert not [task for task in asyncio.all_tasks() if "uia-api" in task.get_name()]
    # Names are resolved and files are read in the loop's own pool.
    assert {
        name for name in {thread.name for thread in threading.enumerate()} - before if "uia" in name
    } == set()


async def test_switched_off_and_unknown_names():
    async with service_with(enable_api_backends=False) as service:
        assert service.parts["api_backends"]["state"] == "off"
        assert service.apis is None
    async with service_with(api_backends=["hf_tgi", "olama"]) as service:
        part = service.parts["api_backends"]
        assert part["state"] == "failed"
        assert "Did you mean 'ollama'" in part["reason"]


def test_ports_from_the_environment(monkeypatch):
    monkeypatch.setenv("UIA_DISCOVERY_PORTS", "8080, 9000")
    assert InferenceServiceConfig().discovery_ports == [8080, 9000]
    monkeypatch.setenv("UIA_DISCOVERY_PORTS", "")
    assert InferenceServiceConfig().discovery_ports == []
    monkeypatch.delenv("UIA_DISCOVERY_PORTS")
    assert 11434 in InferenceServiceConfig().discovery_ports
    monkeypatch.setenv("UIA_DISCOVERY_PORTS", "ollama")
    with pytest.raises(ConfigError, match="UIA_DISCOVERY_PORTS='ollama'"):
        InferenceServiceConfig()
