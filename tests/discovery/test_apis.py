"""What discovery makes of what answers, and of what goes, comes back, or is not ours to use."""

import asyncio

import pytest

from uia_lab.backends.providers import PROVIDERS
from uia_lab.discovery import apis
from uia_lab.discovery.apis import ROUNDS_GONE
from uia_lab.domain.errors import BadRequest

KEY = "sk-very-secret-0123456789"


def llamacpp(api, model="gguf"):
    api.server_header = "llama.cpp"
    api.lists(model, owned_by="llamacpp")
    api.answers["GET", "/health"] = (200, {"status": "ok"})


async def test_a_server_at_a_known_port_is_registered_once(api, manager, discover):
    llamacpp(api)
    discovery = discover(ports=[api.port])
    (found,) = await discovery.look()
    assert (found.backend_id, found.usable, found.provider) == (f"llamacpp-{api.port}", True, "llamacpp")
    assert found.source == f"port {api.port}"
    (backend,) = manager.list_backends()
    assert (backend.backend_id, backend.status.value, backend.models) == (
        found.backend_id,
        "healthy",
        {"gguf"},
    )
    assert (backend.endpoint, backend.capabilities.external) == (f"{api.url}/v1", False)
    count = len(api.asked)
    await discovery.look()
    assert len(manager.list_backends()) == 1
    assert len(api.asked) == count
    assert {asked.method for asked in api.asked} == {"GET"}


async def test_what_cannot_be_used_is_listed_with_its_reason(api, other, manager, discover, clock):
    api.answers["GET", "/v1/models"] = (401, {"error": {"message": "key?"}})
    discovery = discover(ports=[api.port, other.port, 9])
    found = await discovery.look()
    assert [(item.usable, item.backend_id) for item in found] == [(False, None)] * 2
    assert "wants a key" in found[0].reason
    assert "none of the servers known" in found[1].reason
    assert manager.list_backends() == []
    # It is looked at again, ever less often.
    count = len(api.asked)
    await discovery.look()
    assert len(api.asked) == count
    clock.now += 100
    llamacpp(api)
    found = await discovery.look()
    assert [item.usable for item in found] == [True, False]
    assert found[0].to_dict()["backend_id"] == f"llamacpp-{api.port}"


async def test_an_empty_or_loading_server(api, other, manager, discover):
    api.answers["GET", "/api/version"] = (200, {"version": "1"})
    api.answers["GET", "/api/tags"] = (200, {"models": []})
    other.server_header = "llama.cpp"
    for path in ("/v1/models", "/health"):
        other.answers["GET", path] = (503, {"error": {"message": "Loading model", "code": 503}})
    empty, loading = await discover(ports=[api.port, other.port]).look()
    assert (empty.usable, empty.provider) == (False, "ollama")
    assert "no models" in empty.reason
    assert (loading.usable, loading.backend_id) == (True, f"llamacpp-{other.port}")
    assert manager.get_backend(loading.backend_id).status.value == "initializing"


async def test_no_key_goes_to_a_host_nobody_named(api, other, discover):
    """The keys are for their own providers; what listens at a port gets none of them."""
    llamacpp(api)
    llamacpp(other)
    environ = dict.fromkeys((name for it in PROVIDERS.values() for name in it.keys), KEY)
    environ |= {it.base_url_variable: "http://127.0.0.1:9/v1" for it in PROVIDERS.values() if it.keys}
    environ |= {"OPENAI_BASE_URL": f"{other.url}/v1", "OLLAMA_HOST": "127.0.0.1:9"}
    await discover(ports=[api.port], environ=environ).look()
    assert api.asked
    for asked in api.asked:
        assert KEY not in str(asked)
    assert {asked.headers.get("Authorization") for asked in other.asked} == {f"Bearer {KEY}"}


async def test_credentials_in_an_address_are_refused_and_not_listed(discover, caplog):
    environ = {"OPENAI_BASE_URL": f"https://user:{KEY}@127.0.0.1:9/v1?api-key={KEY}"}
    (found,) = await discover(environ=environ).look()
    assert (found.endpoint, found.usable) == ("https://127.0.0.1:9/v1", False)
    assert "no credentials" in found.reason
    assert KEY not in f"{found}{caplog.text}"


async def test_a_redirect_takes_no_key_along(api, other, discover):
    for path in ("/v1/models", "/models", "/info", "/api/version", "/api/v0/models"):
        api.answers["GET", path] = (307, b"", {"Location": other.url + path})
    environ = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{api.url}/v1"}
    (found,) = await discover(environ=environ).look()
    assert not found.usable
    assert KEY not in found.reason
    assert api.asked
    assert other.asked == []


async def test_a_server_that_goes_is_unregistered_after_a_while_and_found_again(
    api, manager, discover, clock
):
    llamacpp(api)
    discovery = discover(environ={"LLAMACPP_BASE_URL": api.url + "/v1"}, interval=1.0)
    (found,) = await discovery.look()
    name = found.backend_id
    port = api.port
    await api.__aexit__()
    await manager.probe(name)
    assert manager.get_backend(name).status.value == "offline"
    for _ in range(ROUNDS_GONE + 20):
        clock.now += 10_000
        (found,) = await discovery.look()
        if manager.get_backend(name) is None:
            break
    assert manager.get_backend(name) is None
    assert not found.usable
    await api.__aenter__()
    llamacpp(api)
    clock.now += 10_000
    moved = discover(ports=[api.port])
    (found,) = await moved.look()
    assert found.usable
    assert api.port != port or found.backend_id == name


async def test_another_server_at_the_same_port_takes_the_place(api, manager, discover, clock):
    llamacpp(api)
    discovery = discover(ports=[api.port])
    await discovery.look()
    api.answers.clear()
    api.server_header = None
    api.lists("org/model", owned_by="vllm")
    await manager.probe(f"llamacpp-{api.port}")
    manager.router.registry.get(f"llamacpp-{api.port}").instance.backend._found = None
    api.answers["GET", "/health"] = (500, b"")
    await manager.probe(f"llamacpp-{api.port}")
    api.answers["GET", "/health"] = (200, b"")
    (found,) = await discovery.look()
    assert found.backend_id == f"vllm-{api.port}"
    assert [backend.backend_id for backend in manager.list_backends()] == [f"vllm-{api.port}"]


async def test_what_people_registered_or_removed_stays_so(api, other, manager, discover):
    llamacpp(api)
    llamacpp(other)
    discovery = discover(ports=[api.port, other.port])
    manager.register_backend(
        "mine",
        "api",
        "Mine",
        lambda inputs: inputs,
        _capabilities(),
        endpoint=f"http://localhost:{api.port}/v1",
    )
    found = await discovery.look()
    assert [item.backend_id for item in found] == ["mine", f"llamacpp-{other.port}"]
    assert "registered as mine" in found[0].reason
    manager.unregister_backend(f"llamacpp-{other.port}")
    found = await discovery.look()
    assert [item.usable for item in found] == [True, False]
    assert "was removed" in found[1].reason
    assert [backend.backend_id for backend in manager.list_backends()] == ["mine"]


async def test_whoever_registers_first_keeps_the_id_and_the_server(
    api, other, manager, discover, monkeypatch
):
    """Somebody is faster than the looks that discovery still waits for."""
    llamacpp(api)
    llamacpp(other)
    build, names = apis.ApiDiscovery._build, [f"llamacpp-{api.port}", "mine"]

    def overtaken(self, place, description):
        if names and description.id == "found":
            endpoint = place.endpoint if len(names) == 1 else None
            manager.register_backend(
                names.pop(0), "api", "Mine", lambda inputs: inputs, _capabilities(), endpoint=endpoint
            )
        return build(self, place, description)

    monkeypatch.setattr(apis.ApiDiscovery, "_build", overtaken)
    found = await discover(ports=[api.port]).look()
    assert [(item.backend_id, item.usable) for item in found] == [(f"llamacpp-{api.port}-2", True)]
    assert manager.get_backend(f"llamacpp-{api.port}").name == "Mine"
    found = await discover(ports=[other.port]).look()
    assert [(item.backend_id, item.usable) for item in found] == [("mine", True)]
    assert "registered as mine" in found[0].reason
    assert len(manager.list_backends()) == 3


async def test_two_servers_of_one_kind_found_at_once_have_two_ids(api, other, manager, discover, monkeypatch):
    monkeypatch.setattr(apis, "is_loopback", lambda endpoint: False)
    for server in (api, other):
        server.lists("m", owned_by="vllm")
    environ = {"OPENAI_BASE_URL": f"{api.url}/v1", "VLLM_BASE_URL": f"{other.url}/v1"}
    found = await discover(environ=environ).look()
    assert {item.backend_id for item in found} == {"vllm", "vllm-2"}
    assert {backend.endpoint for backend in manager.list_backends()} == {f"{api.url}/v1", f"{other.url}/v1"}


async def test_what_was_found_gives_way_to_what_is_added_by_hand(api, other, manager, discover):
    llamacpp(api)
    llamacpp(other)
    discovery = discover(ports=[api.port, other.port])
    await discovery.look()
    discovery.give_way()
    assert len(manager.list_backends()) == 2
    for name, server in (("mine", api), ("ours", other)):
        manager.register_backend(
            name, "api", name, lambda inputs: inputs, _capabilities(), endpoint=f"{server.url}/v1"
        )
    discovery.give_way()
    for _ in range(2):
        assert [item.backend_id for item in discovery.found()] == ["mine", "ours"]
        assert [backend.backend_id for backend in manager.list_backends()] == ["mine", "ours"]
        await discovery.look()


async def test_it_gives_way_even_while_it_is_looked_at(api, manager, discover, monkeypatch):
    llamacpp(api)
    discovery, probe = discover(ports=[api.port]), manager.probe

    async def overtaken(backend_id):
        looking = asyncio.create_task(probe(backend_id))
        await asyncio.sleep(0)
        manager.register_backend(
            "mine", "api", "Mine", lambda inputs: inputs, _capabilities(), endpoint=f"{api.url}/v1"
        )
        discovery.give_way()
        return await looking

    monkeypatch.setattr(manager, "probe", overtaken)
    for _ in range(2):
        (found,) = await discovery.look()
        assert (found.backend_id, found.reason) == ("mine", "is registered as mine")
        assert [backend.backend_id for backend in manager.list_backends()] == ["mine"]


async def test_a_backend_that_replaced_a_found_one_is_left_alone(api, manager, discover, monkeypatch):
    llamacpp(api)
    discovery = discover(ports=[api.port])
    (found,) = await discovery.look()
    manager.register_backend(found.backend_id, "gpu", "Mine", lambda inputs: inputs, _capabilities())
    monkeypatch.setattr(apis, "stranger_at", lambda port: 1234)
    (found,) = await discovery.look()
    assert (found.backend_id, found.usable) == (None, False)
    assert [backend.name for backend in manager.list_backends()] == ["Mine"]


async def test_names_narrow_and_unknown_ones_are_refused(api, manager, discover):
    llamacpp(api)
    (found,) = await discover("ollama", ports=[api.port]).look()
    assert not found.usable
    assert "leaves out" in found.reason
    assert await discover("openai_api", ports=[api.port]).look() == []
    with pytest.raises(BadRequest, match="Did you mean 'ollama'"):
        discover("olama")
    assert manager.list_backends() == []


async def test_own_ports_and_strangers_are_left_alone(api, other, manager, discover, monkeypatch):
    llamacpp(api)
    llamacpp(other)
    monkeypatch.setattr(apis, "stranger_at", lambda port: 1234)
    discovery = discover(ports=[api.port, other.port], own=lambda: {api.port})
    (found,) = await discovery.look()
    assert (found.endpoint, found.usable) == (other.url, False)
    assert "another user of this machine (1234)" in found.reason
    assert api.asked == other.asked == []


async def test_a_stranger_who_takes_over_the_port_gets_nothing(api, manager, discover, monkeypatch):
    """Ours ended; what listens there now looks the same, and is another user's."""
    llamacpp(api)
    user = None
    monkeypatch.setattr(apis, "stranger_at", lambda port: user)
    discovery = discover(ports=[api.port])
    (found,) = await discovery.look()
    name = found.backend_id
    user, count = 1234, len(api.asked)
    info = await manager.probe(name)
    assert (info.status.value, info.routable) == ("offline", False)
    assert "another user of this machine (1234)" in info.reason
    for _ in range(2):
        (found,) = await discovery.look()
        assert (found.backend_id, found.usable) == (None, False)
        assert "another user of this machine (1234)" in found.reason
    assert manager.list_backends() == []
    assert len(api.asked) == count
    user = None
    (found,) = await discovery.look()
    assert (found.backend_id, found.usable) == (name, True)


async def test_a_stranger_is_noticed_while_all_looks_well(api, manager, discover, monkeypatch):
    llamacpp(api)
    user = None
    monkeypatch.setattr(apis, "stranger_at", lambda port: user)
    discovery = discover(ports=[api.port])
    await discovery.look()
    user = 1234
    (found,) = await discovery.look()
    assert (found.usable, manager.list_backends()) == (False, [])


async def test_a_silent_server_holds_up_nobody(api, other, manager, discover, monkeypatch):
    monkeypatch.setattr(apis, "LOOK_S", 0.3)

    async def silent(request, response):
        await api.hold()

    for path in ("/v1/models", "/models", "/info", "/api/version", "/api/v0/models"):
        api.answers["GET", path] = (200, silent)
    llamacpp(other)
    async with asyncio.timeout(10):
        found = await discover(ports=[api.port, other.port]).look()
    assert [item.usable for item in found] == [False, True]
    assert "no answer within" in found[0].reason


async def test_it_looks_again_and_again_and_stops_clean(api, manager, discover, clock):
    discovery = discover(ports=[api.port], interval=0.01)
    before = asyncio.all_tasks()
    discovery.start()
    async with asyncio.timeout(10):
        while not discovery.found():
            await asyncio.sleep(0.005)
        llamacpp(api)
        clock.now += 10_000
        while not manager.list_backends():
            await asyncio.sleep(0.005)
    await discovery.stop()
    await discovery.stop()
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not {name for name in left if "discovery" in name or "look" in name}


def _capabilities():
    from uia_lab.domain.backends import BackendCapabilities

    return BackendCapabilities({"text-generation"})
