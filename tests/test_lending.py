"""What peers may ask for, and what becomes of it: with a real manager, and a service's admission and log."""

import asyncio

import pytest

from tests.manager.conftest import Scripted
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError, ModelNotFound, Overloaded
from uia_lab.domain.events import Chunk, Finished, Started
from uia_lab.domain.peers import OfferedModel
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.lending import Lending
from uia_lab.unified_inference_service import UnifiedInferenceService


@pytest.fixture
async def manager():
    made = BackendManager({"enable_health_checks": False})
    yield made
    await made.aclose()
    assert made.totals.in_flight == 0


@pytest.fixture
def add(manager):
    async def register(name, kind="gpu", backend=None, endpoint=None, **capabilities):
        capabilities.setdefault("supported_models", {f"{name}-model"})
        capabilities.setdefault("external", False)
        backend = backend or Scripted("a", "b", **capabilities)
        manager.register_backend(name, kind, name, backend, endpoint=endpoint)
        await manager.probe(name)
        return backend

    return register


def lending(manager, **settings):
    return Lending(manager, InferenceServiceConfig(**settings))


def names(lent):
    return [model.name for model in lent.offer().models]


def asked(model, **fields):
    return InferenceRequest("generation", model, "hello", principal="peer:12D3KooWx", stream=True, **fields)


async def collect(answer):
    return [event async for event in answer]


async def test_only_what_runs_here_and_needs_nobodys_key_is_lent(manager, add):
    keyed = Scripted("x", supported_models={"keyed-model"}, external=False)
    keyed.keyed = True
    await add("own")
    await add("loopback", "api", endpoint="http://127.0.0.1:1")
    await add("keyed", "api", keyed)
    await add("far", "api", endpoint="https://api.example.com", external=None)
    await add("tool", "cli")
    await add("server", "mcp")
    await add("friend", "p2p")
    await add("both", "hybrid")
    await add("acts", side_effects=True)
    assert names(lending(manager)) == ["own-model", "loopback-model"]
    everything = ["keyed", "far", "tool", "server", "friend", "both", "acts"]
    lent = lending(manager, p2p_lent_backends=everything)
    assert names(lent) == ["own-model", "loopback-model", *(f"{name}-model" for name in everything)]


async def test_models_and_tasks_that_the_owner_chose(manager, add):
    await add("a", supported_tasks={"text-generation", "summarization"})
    await add("b", supported_tasks={"text-embedding"})
    assert names(lending(manager, p2p_shared_models=["b*"])) == ["b-model"]
    assert names(lending(manager, p2p_shared_models=[])) == []
    (model,) = lending(manager, p2p_shared_tasks=["summarization"]).offer().models
    assert (model.name, model.tasks) == ("a-model", ("summarization",))
    with pytest.raises(BadRequest, match="unknown task"):
        lending(manager, p2p_shared_tasks=["singing"])


async def test_an_offer_follows_what_becomes_of_the_backends(manager, add):
    backend = await add("a")
    lent = lending(manager)
    assert names(lent) == ["a-model"]
    assert lent.offer() is lent.offer()
    manager.drain("a")
    assert names(lent) == []
    manager.enable("a")
    assert names(lent) == ["a-model"]
    backend.status = BackendStatus.UNKNOWN
    await manager.probe("a")
    assert names(lent) == [], "a model that is not here yet is not fetched for a peer"


async def test_two_backends_of_one_model_offer_what_both_can_do(manager, add):
    shared = {"supported_models": {"m"}, "resume": True}
    await add("a", features={"seed", "tools"}, context_length=100, model_digest={"m": "1"}, **shared)
    await add("b", features={"seed"}, context_length=50, model_digest={"m": "1"}, **shared)
    expected = OfferedModel(
        name="m", tasks=("text-generation",), digest="1", resume=True, context_length=50, features=("seed",)
    )
    assert lending(manager).offer().models == (expected,)
    await add("c", features={"seed"}, model_digest={"m": "2"}, **shared)
    (model,) = lending(manager).offer().models
    assert (model.digest, model.resume) == (None, False)


async def test_a_peer_is_served_and_told_nothing_of_the_house(manager, add):
    backend = await add("a")
    lent = lending(manager)
    touched = []
    lent.touch = lambda: touched.append(1)
    hints = RoutingHints(backend_id="secret", priority=9, session_id="s", deadline_s=5.0)
    events = await collect(lent.serve(asked("a-model", routing=hints, via=("uia-other",), id="req-theirs")))
    assert events[0] == Started("")
    assert len(touched) == len(events)
    assert "".join(event.delta.text for event in events if isinstance(event, Chunk)) == "ab"
    assert isinstance(events[-1], Finished)
    assert events[-1].attempts == ()
    (request,) = backend.requests
    assert request.id != "req-theirs"
    assert (request.principal, request.via) == ("peer:12D3KooWx", ("uia-other",))
    assert request.routing == RoutingHints(priority=-1, deadline_s=5.0)


async def test_what_is_not_lent_is_not_served_and_not_named(manager, add):
    await add("a")
    await add("b", "cli")
    lent = lending(manager)
    for request in (asked("b-model"), asked("nothing")):
        with pytest.raises(ModelNotFound) as caught:
            await collect(lent.serve(request))
        assert "Known: a-model." in caught.value.message
    with pytest.raises(BadRequest, match="name a model that is lent here: a-model"):
        await collect(lent.serve(asked(None)))
    request = InferenceRequest("embedding", "a-model", "x", principal="peer:p")
    with pytest.raises(BadRequest, match="not lent for text-embedding"):
        await collect(lent.serve(request))


async def test_a_backend_that_serves_the_same_model_and_is_not_lent_stays_out(manager, add):
    await add("own", supported_models={"m"}, backend=None)
    secret = await add("paid", "cli", supported_models={"m"})
    lent = lending(manager)
    for _ in range(8):
        await collect(lent.serve(asked("m")))
    assert secret.requests == []
    manager.unregister_backend("own")
    failing = Scripted(BackendFailed("boom"), supported_models={"m"}, external=False)
    await add("own", backend=failing)
    with pytest.raises(InferenceError) as caught:
        await collect(lent.serve(asked("m")))
    assert "paid" not in caught.value.message
    assert secret.requests == []


async def test_our_own_requests_go_first(manager, add):
    gate = asyncio.Event()
    backend = Scripted(gate, "x", supported_models={"m"}, external=False)
    manager.register_backend("one", "gpu", "One", backend, max_concurrency=1)
    await manager.probe("one")
    lent = lending(manager)
    first = asyncio.create_task(manager.infer("generation", "m", "0"))
    await backend.reached.wait()
    theirs = asyncio.create_task(collect(lent.serve(asked("m"))))
    while not len(manager.router.queue):
        await asyncio.sleep(0)
    ours = asyncio.create_task(manager.infer("generation", "m", "ours"))
    while len(manager.router.queue) < 2:
        await asyncio.sleep(0)
    assert (lent.load().in_flight, lent.load().queued) == (1, 2)
    gate.set()
    await asyncio.gather(first, ours, theirs)
    assert [request.inputs for request in backend.requests] == ["0", "ours", "hello"]


async def test_a_peer_that_leaves_ends_its_request(manager, add):
    never = asyncio.Event()
    backend = Scripted("a", never, supported_models={"m"}, external=False)
    await add("a", backend=backend)
    answer = lending(manager).serve(asked("m"))
    assert await anext(answer) == Started("")
    await anext(answer)
    await answer.aclose()
    assert backend.closed == 1
    assert manager.totals.cancelled == 1


async def test_peers_pass_admission_and_stand_in_the_log():
    config = InferenceServiceConfig(
        enable_hf_server=False, enable_api_backends=False, store_path=":memory:", max_concurrent_requests=1
    )
    manager = BackendManager({"enable_health_checks": False})
    async with UnifiedInferenceService(config, manager=manager) as service:
        gate = asyncio.Event()
        backend = Scripted(gate, "x", supported_models={"m"}, external=False)
        manager.register_backend("a", "gpu", "A", backend)
        await manager.probe("a")
        lent = Lending(manager, config)
        first = asyncio.create_task(collect(lent.serve(asked("m"))))
        await backend.reached.wait()
        with pytest.raises(Overloaded):
            await collect(lent.serve(asked("m")))
        gate.set()
        await first
        records = await service.request_log.find()
        assert sorted((record.principal, record.outcome) for record in records) == [
            ("peer:12D3KooWx", "ok"),
            ("peer:12D3KooWx", "rejected"),
        ]
