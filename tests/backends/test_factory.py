"""What a description becomes, and servers that are recognised by free questions."""

import pytest

from tests.backends.conftest import KEY
from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.backends.providers import PROVIDERS, provider_at, provider_named
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    NoBackendAvailable,
    NotAllowed,
    Unauthenticated,
    Unsupported,
)


def described(endpoint, **fields):
    return BackendDescription(id="it", type="api", endpoint=endpoint, **fields)


def ollama(api):
    api.answers["GET", "/api/version"] = (200, {"version": "0.12"})
    api.lists("qwen", owned_by="library")
    api.answers["GET", "/api/tags"] = (200, {"models": [{"name": "qwen:1b"}, {"name": "llama:1b"}]})
    api.answers["GET", "/api/ps"] = (200, {"models": [{"name": "llama:1b"}]})


def llamacpp(api):
    api.server_header = "llama.cpp"
    api.lists("gguf", owned_by="llamacpp")
    api.answers["GET", "/health"] = (200, {"status": "ok"})


def llamacpp_loading(api):
    api.server_header = "llama.cpp"
    for path in ("/v1/models", "/health", "/props"):
        api.answers["GET", path] = (503, {"error": {"message": "Loading model", "code": 503}})


def vllm(api):
    api.lists("org/model", owned_by="vllm")


def lmstudio(api):
    api.lists("local")
    api.answers["GET", "/api/v0/models"] = (200, {"data": [{"id": "local"}]})


def tgi(api):
    api.answers["GET", "/info"] = (200, {"model_id": "org/llm", "max_total_tokens": 4096})


def tei(api):
    api.answers["GET", "/info"] = (200, {"model_id": "org/e", "model_type": {"embedding": {}}})


def plain(api):
    api.lists("any")


@pytest.mark.parametrize("server", [ollama, llamacpp, llamacpp_loading, vllm, lmstudio, tgi, tei, plain])
async def test_a_server_is_recognised(api, factory, server):
    server(api)
    whole = await factory.complete(described(f"{api.url}/"))
    name = {"plain": "compatible"}.get(server.__name__, server.__name__.partition("_")[0])
    provider = PROVIDERS[name]
    assert whole.options["provider"] == name
    assert whole.endpoint == api.url + provider.prefix
    assert (whole.dialect, whole.max_concurrency) == (provider.dialect, provider.concurrency)
    assert set(whole.tasks) == (provider.tasks if name != "tei" else {"text-embedding"})
    assert {asked.method for asked in api.asked} == {"GET"}
    backend = factory.build(whole)
    assert backend.capabilities.external is False
    if name in ("llamacpp", "vllm", "ollama", "tgi", "tei"):
        api.answers.setdefault(("GET", "/health"), (200, b""))
    found = await backend.probe()
    wanted = BackendStatus.INITIALIZING if server is llamacpp_loading else BackendStatus.HEALTHY
    assert found.status is wanted
    if name == "ollama":
        assert (backend.models_loaded, backend._default_model()) == (1, "llama:1b")
        assert found.models == {"qwen:1b", "llama:1b"}
    # What is complete stays as it is, and asks nobody.
    count = len(api.asked)
    assert await factory.complete(whole) == whole
    assert len(api.asked) == count


async def test_what_the_one_model_of_a_server_does(api, factory):
    tei(api)
    api.answers["GET", "/info"][1]["model_type"] = {"classifier": {"id2label": {}}}
    assert (await factory.complete(described(api.url))).tasks == ("text-classification",)
    api.answers["GET", "/info"][1]["model_type"] = {"reranker": {}}
    with pytest.raises(BackendFailed, match="ranks texts"):
        await factory.complete(described(api.url))


async def test_the_base_url_may_be_given(api, factory):
    plain(api)
    assert (await factory.complete(described(f"{api.url}/v1"))).endpoint == f"{api.url}/v1"
    api.answers.clear()
    api.answers["GET", "/llm/models"] = (200, {"data": [{"id": "x"}]})
    assert (await factory.complete(described(f"{api.url}/llm"))).endpoint == f"{api.url}/llm"


async def test_what_cannot_be_recognised_says_what_was_tried(api, factory):
    with pytest.raises(BackendFailed, match=r"none of the servers.*/v1/models: 404"):
        await factory.complete(described(api.url))
    whole = await factory.complete(described(f"{api.url}/x", dialect="openai-chat", models=("m",)))
    assert (whole.endpoint, whole.dialect, whole.models) == (f"{api.url}/x", "openai-chat", ("m",))
    with pytest.raises(NoBackendAvailable, match="nobody answers at"):
        await factory.complete(described("http://127.0.0.1:9"))
    api.answers["GET", "/v1/models"] = (401, {"error": {"message": "no"}})
    with pytest.raises(Unauthenticated, match="wants a key"):
        await factory.complete(described(api.url))
    api.answers["GET", "/v1/models"] = (302, b"", {"Location": "http://127.0.0.1:9/"})
    with pytest.raises(BackendFailed, match="/v1/models: 302"):
        await factory.complete(described(api.url))


async def test_a_key_goes_where_it_was_sent_by_name(api, factory):
    plain(api)
    whole = await factory.complete(described(api.url, api_key_env="MY_KEY"))
    assert whole.api_key_env == "MY_KEY"
    assert {asked.headers.get("Authorization") for asked in api.asked} == {f"Bearer {KEY}"}
    assert KEY not in repr(whole)
    with pytest.raises(Unauthenticated, match="OTHER is not set"):
        await factory.complete(described(api.url, api_key_env="OTHER"))


async def test_providers_are_known_by_their_hosts_without_asking():
    factory = BackendFactory(Secrets(environ={"HF_API_TOKEN": "hf-x"}), EndpointPolicy(), "uia-me")
    whole = await factory.complete(described("https://router.huggingface.co"))
    assert (whole.endpoint, whole.api_key_env) == ("https://router.huggingface.co/v1", "HF_API_TOKEN")
    assert factory.build(whole).capabilities.external is True
    with pytest.raises(Unauthenticated, match="OPENAI_API_KEY"):
        await factory.complete(described("https://api.openai.com"))
    azure = described("https://mine.openai.azure.com", api_key_env="HF_API_TOKEN")
    assert (await factory.complete(azure)).endpoint == "https://mine.openai.azure.com/openai/v1"
    assert provider_at("https://api.openai.com.evil.example/v1") is None
    assert provider_at("https://api.openai.com:443/v1") is PROVIDERS["openai"]
    # Its key would go unencrypted, or to whoever listens there.
    for place in ("http://api.openai.com/v1", "https://api.openai.com:8080", "http://api.openai.com:443"):
        assert provider_at(place) is None
    assert provider_at("http://x.openai.azure.com/openai/v1") is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "ftp://host"}, "endpoint"),
        ({"endpoint": "ws://host"}, "endpoint"),
        ({"endpoint": f"http://u:{KEY}@host"}, "endpoint"),
        ({"endpoint": None}, "endpoint"),
        ({"dialect": "opnai"}, "dialect"),
        ({"tasks": ("cooking",)}, "tasks"),
        ({"options": {"headres": {}}}, "options.headres"),
        ({"options": {"headers": {"Authorization": KEY}}}, "options.headers"),
        ({"options": {"query": {"a": 1}}}, "options.query"),
        ({"options": {"body": 3}}, "options.body"),
        ({"options": {"query": {"Key": KEY}}}, "options.query"),
        ({"options": {"provider": "nobody"}}, "options.provider"),
    ],
)
async def test_bad_fields_are_named(factory, fields, param):
    fields = {"endpoint": "http://127.0.0.1:9", **fields}
    with pytest.raises(BadRequest) as caught:
        await factory.complete(described(**fields))
    assert caught.value.param == param
    assert KEY not in caught.value.message


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        (described("http://169.254.169.254/v1"), NotAllowed),
        (described("http://2852039166/v1"), NotAllowed),
        (BackendDescription(id="x", type="p2p"), Unsupported),
    ],
)
async def test_addresses_and_kinds_that_are_refused(factory, description, kind):
    with pytest.raises(kind):
        await factory.complete(description)
    with pytest.raises(kind):
        factory.build(description)


def test_every_provider_can_be_named():
    names = ("hf_tgi", "HF-TEI", "ollama", "openai_api", "anthropic")
    assert [provider_named(name).name for name in names] == ["tgi", "tei", "ollama", "openai", "anthropic"]
    with pytest.raises(BadRequest, match="Did you mean 'ollama'"):
        provider_named("olama")
    variables = [provider.base_url_variable for provider in PROVIDERS.values()]
    assert "OPENAI_BASE_URL" in variables
    assert len(set(variables)) == len(variables)
    assert [name for name, provider in PROVIDERS.items() if provider.verified] == ["llamacpp", "compatible"]
