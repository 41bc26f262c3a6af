"""The sixteen things that users of such systems complain about most: one test, or a few, for each."""

import asyncio
import gc
import random
import re
import threading
import tracemalloc

import pytest

from tests.faults.conftest import Told, make_manager, read, until
from tests.upstreams.fault_server import Fault
from uia_lab.domain.backends import BackendCapabilities, BackendStatus
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    InferenceError,
    ModelNotFound,
    NoBackendAvailable,
    QueueFull,
    RateLimited,
    StreamInterrupted,
)
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.doors.metrics import exposition

TEXT = "text-generation"


def ask(manager, model="m", **hints):
    return manager.infer(TEXT, model, "x", **hints)


def open_stream(manager, **hints):
    return manager.stream(TEXT, "m", "x", **hints)


def add(manager, name, backend, **options):
    return manager.register_backend(name, "gpu", name, backend, **options)


def loads(manager):
    return [entry.in_flight for entry in manager.router.registry]


async def test_01_least_busy_does_not_collapse(manager):
    """1. Least-busy collapses onto one backend: counters expire or drift, and ties go to the first."""
    manager.set_strategy("least_loaded")
    gate = asyncio.Event()
    backends = [Told("one ", gate, "two") for _ in range(4)]
    for number, backend in enumerate(backends):
        add(manager, f"b{number}", backend)
    asked = [manager.open(InferenceRequest(TEXT, "m", str(number), stream=True)) for number in range(400)]
    tasks = [asyncio.create_task(stream.result()) for stream in asked[:300]]
    for stream in asked[300:]:
        await read(stream, 1)
    await until(lambda: sum(backend.under_way for backend in backends) == 400)
    assert loads(manager) == [100] * 4

    rng = random.Random(1)
    leaving = rng.sample(range(300), 80)
    for place in leaving[:40]:
        tasks[place].cancel()
    for place in leaving[40:]:
        assert manager.cancel(asked[place].request_id)
    for stream in asked[300:340]:
        await stream.aclose()
    del asked[340:380], stream
    await until(lambda: sum(loads(manager)) == 240)
    assert loads(manager) == [backend.under_way for backend in backends]
    tasks += [asyncio.create_task(ask(manager)) for _ in range(160)]
    await until(lambda: sum(backend.under_way for backend in backends) == 400)
    assert loads(manager) == [100] * 4, "those who left made room, and no more than that"

    gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(item, Cancelled | asyncio.CancelledError) for item in ended) == 80
    for stream in asked[340:]:
        await stream.result()
    assert loads(manager) == [0] * 4
    assert (manager.totals.total, manager.totals.ok, manager.totals.cancelled) == (560, 400, 160)


@pytest.mark.parametrize("strategy", ["least_loaded", "weighted_random"])
async def test_01_ties_go_to_everyone(manager, strategy):
    """1. ... and ties always go to the first."""
    manager.set_strategy(strategy)
    backends = [Told("x") for _ in range(4)]
    for number, backend in enumerate(backends):
        add(manager, f"b{number}", backend)
    for _ in range(400):
        await ask(manager)
    assert min(backend.asked for backend in backends) >= 60


@pytest.mark.parametrize("strategy", ["least_loaded", "best_performance"])
async def test_02_failing_fast_attracts_nothing(manager, register, servers, strategy):
    """2. A backend that fails fast (instant 503) attracts all the load under least-connections."""
    manager.set_strategy(strategy)
    register("bad", servers.first)
    register("good", servers.second)
    await servers.first.switch(Fault.UNAVAILABLE)
    await servers.second.switch(Fault.SLOW, gap_s=0.001)
    for _ in range(20):
        results = await asyncio.gather(*(ask(manager) for _ in range(10)))
        assert {result.backend_id for result in results} == {"good"}
    assert servers.first.requests <= 20, "a tenth of the traffic at most, the first burst included"


@pytest.mark.parametrize("strategy", ["least_loaded", "best_performance"])
async def test_02_failing_fast_with_a_fault_neither(manager, strategy):
    """2. The same for one whose instant answer is a fault."""
    manager.set_strategy(strategy)
    bad = Told(BackendFailed("boom"))
    add(manager, "bad", bad)
    add(manager, "good", Told("x"))
    for _ in range(100):
        results = await asyncio.gather(*(ask(manager) for _ in range(2)))
        assert {result.backend_id for result in results} == {"good"}
    assert bad.asked <= 10


async def test_03_health_checks_leave_the_counters_alone(manager):
    """3. Health checks reset in-flight counters; unhealthy workers pollute the min/max load."""
    manager.set_strategy("least_loaded")
    gate = asyncio.Event()
    backends = {name: Told("x", gate) for name in "abc"}
    for name, backend in backends.items():
        add(manager, name, backend)
    backends["c"].status = BackendStatus.OFFLINE
    await manager.probe("c")
    tasks = [asyncio.create_task(ask(manager)) for _ in range(20)]
    await until(lambda: sum(loads(manager)) == 20)
    assert loads(manager) == [10, 10, 0], "one that is offline is not the least busy"
    for status in (BackendStatus.HEALTHY, BackendStatus.DEGRADED, BackendStatus.UNHEALTHY):
        backends["a"].status = status
        await asyncio.gather(*(manager.probe(name) for name in "abcabc"))
        assert loads(manager) == [10, 10, 0]
    backends["a"].status = BackendStatus.HEALTHY
    await manager.probe("a")
    tasks += [asyncio.create_task(ask(manager)) for _ in range(10)]
    await until(lambda: sum(loads(manager)) == 30)
    assert loads(manager) == [15, 15, 0]
    gate.set()
    await asyncio.gather(*tasks)
    assert loads(manager) == [0, 0, 0]


@pytest.mark.parametrize(
    "error", [BadRequest("temperature"), ModelNotFound("no such"), RateLimited("slow down", retry_after=0.0)]
)
async def test_04_bad_clients_and_back_pressure_open_nothing(manager, error):
    """4. The breaker counts 4xx, or back-pressure, as faults: one bad client takes the fleet out."""
    backend = Told(error)
    add(manager, "a", backend)
    await manager.probe("a")
    for _ in range(30):
        with pytest.raises(type(error)):
            await ask(manager)
    info = manager.get_backend("a")
    assert backend.asked == 30
    assert info.status is BackendStatus.HEALTHY
    assert info.routable
    backend.script = ("x",)
    assert (await ask(manager)).text == "x"


async def leave_by_closing(manager):
    stream = open_stream(manager)
    await read(stream, 2)
    await stream.aclose()


async def leave_by_dropping(manager):
    stream = open_stream(manager)
    await read(stream, 2)
    del stream
    gc.collect()


async def leave_by_task(manager):
    stream = open_stream(manager)
    await read(stream, 2)
    task = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_id(manager):
    stream = open_stream(manager)
    await read(stream, 2)
    manager.cancel(stream.request_id)
    with pytest.raises(Cancelled):
        await anext(stream)


LEAVE = [leave_by_closing, leave_by_dropping, leave_by_task, leave_by_id]


@pytest.mark.parametrize("leave", LEAVE)
async def test_05_leaving_mid_stream_frees(manager, register, servers, leave):
    """5. In-flight count leaks when the client disconnects mid-stream."""
    register("a", servers.first)
    await servers.first.switch(Fault.STALLED)
    for number in range(1, 4):
        await leave(manager)
        await until(lambda: loads(manager) == [0])
        await servers.first.until_idle()
        assert servers.first.aborted == number
    assert (manager.totals.cancelled, manager.totals.in_flight) == (3, 0)
    assert manager.get_backend("a").status is not BackendStatus.UNHEALTHY, "who leaves says nothing of it"


@pytest.mark.parametrize("fault", [Fault.SILENT_AFTER_ACCEPT, Fault.SILENT_AFTER_HEADERS])
async def test_06_silence_has_an_end(manager, fleet, impatient, fault):
    """6. A silent upstream: no timeout fires, fallback is never tried."""
    await fleet.first.switch(fault)
    result = await ask(manager)
    assert [(item.backend_id, item.error) for item in result.attempts] == [
        ("first", "backend_timeout"),
        ("second", None),
    ]
    await fleet.first.until_idle()


async def test_06_nothing_goes_on_after_the_client_left(manager, fleet):
    """6. ... retries go on after the client left."""
    await fleet.first.switch(Fault.SILENT_AFTER_ACCEPT)
    task = asyncio.create_task(ask(manager))
    await fleet.first.until(lambda server: server.in_flight == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fleet.first.until_idle()
    assert (fleet.first.requests, fleet.second.requests) == (1, 0)
    assert manager.totals.cancelled == 1


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.STALLED, Fault.MALFORMED])
@pytest.mark.parametrize("after", [0, 2])
async def test_07_a_broken_stream_moves_on_or_says_so(manager, fleet, impatient, fault, after):
    """7. Streaming fallback holes: a cut, stalled or malformed stream triggers no fallback."""
    fleet.first.strike.clear()
    await fleet.first.switch(fault, after=after)
    stream = open_stream(manager)
    if after == 0:
        fleet.first.strike.set()
        assert (await stream.result()).backend_id == "second"
    else:
        await read(stream, after)
        fleet.first.strike.set()
        with pytest.raises(StreamInterrupted):
            await anext(stream)
        assert fleet.second.requests == 0
    assert manager.get_backend("first").metrics.failed_requests == 1


async def test_07_where_weights_and_will_agree_the_stream_goes_on(manager, register, servers, impatient):
    """7. ... and between backends with the same weights it goes on where it stopped."""
    same = {"resume": True, "supported_models": {"m"}, "model_digest": {"m": "sha256:1"}}
    register("first", servers.first, weight=100.0, **same)
    register("second", servers.second, **same)
    servers.first.strike.clear()
    await servers.first.switch(Fault.CUT)
    stream = open_stream(manager)
    await read(stream, 2)
    servers.first.strike.set()
    switched, *rest = [event async for event in stream]
    assert (switched.from_id, switched.to_id, switched.at_index) == ("first", "second", 2)
    assert [event.index for event in rest[:-1]] == list(range(2, 10))
    assert rest[-1].result == "t0 t1 " + servers.second.text, "this upstream does not look at its prompt"


@pytest.mark.parametrize("after", [0, 2])
async def test_08_an_error_inside_a_200_is_a_failure(manager, register, servers, after):
    """8. An error frame inside an HTTP 200 stream is logged as a success."""
    register("a", servers.first)
    await servers.first.switch(Fault.ERROR_FRAME, after=after)
    with pytest.raises(InferenceError, match="out of memory"):
        await ask(manager)
    assert (manager.totals.ok, manager.totals.failed) == (0, 1)
    metrics = manager.get_backend("a").metrics
    assert (metrics.successful_requests, metrics.failed_requests) == (0, 1)
    (record,) = manager.records
    assert (record.outcome, record.chunks) == ("failed", after)


@pytest.mark.parametrize("leave", LEAVE)
async def test_09_who_leaves_is_accounted_for(manager, register, servers, leave):
    """9. Accounting on cancel: no usage row, or wrong usage."""
    register("a", servers.first)
    await servers.first.switch(Fault.STALLED)
    await leave(manager)
    await until(lambda: manager.records)
    (record,) = manager.records
    assert (record.outcome, record.backend_id, record.chunks) == ("cancelled", "a", 2)
    assert record.output_tokens == 2
    assert record.estimated
    assert [(item.backend_id, item.outcome) for item in record.attempts] == [("a", "cancelled")]
    assert record.first_token_s <= record.latency_s


async def test_10_nothing_is_kept_of_a_request():
    """10. Memory growth from unbounded per-request references and per-chunk threads."""
    manager = make_manager()
    manager.on_record = None
    add(manager, "a", Told("x", "y"))
    add(manager, "b", Told("x", "y"), max_concurrency=2)
    add(manager, "c", Told("x", BadRequest("no")))

    async def one(number):
        stream = manager.open(
            InferenceRequest(
                TEXT, f"model-{number}", f"x{number}", principal=f"p{number}", stream=number % 2 == 0,
                routing=RoutingHints(session_id=f"s{number}", priority=number),
            )
        )  # fmt: skip
        if number % 3:
            await asyncio.gather(stream.result(), return_exceptions=True)
        else:
            await anext(stream)
            await stream.aclose()

    async def objects_after(numbers):
        for number in numbers:
            await one(number)
        gc.collect()
        return len(gc.get_objects())

    threads = threading.active_count()
    tracemalloc.start()
    try:
        objects = await objects_after(range(3_000))
        before = tracemalloc.take_snapshot()
        assert await objects_after(range(3_000, 8_000)) - objects < 250, "one in twenty would be a leak"
        changes = tracemalloc.take_snapshot().compare_to(before, "filename")
    finally:
        tracemalloc.stop()
    grown = [item for item in changes if "uia_lab" in item.traceback[0].filename]
    assert sum(item.size_diff for item in grown) < 100_000, "\n".join(map(str, grown))
    assert threading.active_count() == threads
    assert (manager.running, manager.waiting, len(manager.router.queue)) == ({}, {}, 0)
    assert manager.totals.total == 8_000
    await manager.aclose()


async def test_11_metrics_have_no_client_made_labels(manager):
    """11. Prometheus label leak from client-supplied model names."""
    add(manager, "any", Told("x"))
    add(manager, "named", Told("x", supported_models={"m"}))

    def labels():
        text = exposition(manager.get_backend_status_report).decode()
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    await ask(manager, backend_id="any")
    await ask(manager, backend_id="named")
    before = labels()
    for number in range(1_000):
        await manager.run(
            InferenceRequest(TEXT, f"client-made-{number}", "x", principal=f"client-made-{number}")
        )
    assert labels() == before
    assert not any("client-made" in line for line in before)
    manager.unregister_backend("any")
    for number in range(10):
        with pytest.raises(ModelNotFound):
            await ask(manager, f"client-made-{number}")
    assert not re.search("client-made", "".join(labels()))


async def test_12_probes_are_free_and_do_not_lie(manager, fleet, impatient):
    """12. Health checks that cost money (real inference) or lie (breaker open, status "healthy")."""
    for _ in range(10):
        await manager.probe("first")
    assert (fleet.first.probes, fleet.first.requests) == (10, 0)
    await fleet.first.switch(Fault.ERROR_FRAME, after=0)
    for _ in range(5):
        with pytest.raises(BackendFailed):
            await ask(manager, backend_id="first")
    for _ in range(3):
        info = await manager.probe("first")
        assert info.status is BackendStatus.UNHEALTHY, "its /v1/models answers, its answers fail"
        assert not info.routable
        assert "out of memory" in info.reason
    manager.pass_time(80.0)
    info = await manager.probe("first")
    assert info.status is BackendStatus.DEGRADED, "on trial is not healthy"
    report = manager.get_backend_status_report()
    assert report["backends_by_status"].get("healthy", 0) + report["backends_by_status"]["degraded"] <= 2
    assert fleet.first.requests == 5


async def test_13_when_all_cool_down_one_waits(manager, fleet):
    """13. All backends cooling down gives an immediate error; users want to wait until the first returns."""
    await fleet.first.switch(Fault.RATE_LIMITED, retry_after=20)
    await fleet.second.switch(Fault.RATE_LIMITED, retry_after=5)
    with pytest.raises(RateLimited):
        await ask(manager)
    await fleet.first.switch(Fault.NONE)
    await fleet.second.switch(Fault.NONE)
    waiting = asyncio.create_task(ask(manager))
    await until(lambda: len(manager.router.queue) == 1)
    manager.pass_time(4.0)
    assert len(manager.router.queue) == 1
    manager.pass_time(1.5)
    assert (await waiting).backend_id == "second"
    assert fleet.first.requests == 1


async def test_13_but_not_beyond_the_deadline(manager, fleet):
    """13. ... within the deadline."""
    for server in (fleet.first, fleet.second):
        await server.switch(Fault.RATE_LIMITED, retry_after=20)
    with pytest.raises(RateLimited):
        await ask(manager)
    with pytest.raises((DeadlineExceeded, NoBackendAvailable)):
        await asyncio.wait_for(ask(manager, deadline_s=0.1), 5.0)
    assert (fleet.first.requests, fleet.second.requests) == (1, 1)


async def test_14_round_robin_survives_heartbeats(manager):
    """14. Round robin restarts when any heartbeat field changes (keyed on object identity)."""
    manager.set_strategy("round_robin")
    backends = {name: Told("x") for name in "abc"}
    for name, backend in backends.items():
        add(manager, name, backend)
    order = ""
    for number in range(30):
        order += (await ask(manager)).backend_id
        backend = backends["abc"[number % 3]]
        backend.status = (BackendStatus.HEALTHY, BackendStatus.DEGRADED)[number % 2]
        backend.capabilities = BackendCapabilities({TEXT}, supports_streaming=True, context_length=1 + number)
        await manager.probe("abc"[number % 3])
    rounds = [order[start : start + 3] for start in range(0, 30, 3)]
    assert all(sorted(item) == ["a", "b", "c"] for item in rounds), rounds
    backends["b"].status = BackendStatus.OFFLINE
    await manager.probe("b")
    order = "".join([(await ask(manager)).backend_id for _ in range(10)])
    assert (order.count("a"), order.count("c")) == (5, 5)
    backends["b"].status = BackendStatus.HEALTHY
    await manager.probe("b")
    order = "".join([(await ask(manager)).backend_id for _ in range(30)])
    assert all(9 <= order.count(name) <= 11 for name in "abc"), order


async def test_15_affinity_yields_to_load(manager):
    """15. Cache-aware death spiral: affinity ignores load."""
    manager.set_strategy("prefix_affinity")
    gate = asyncio.Event()
    gate.set()
    for name in "abc":
        add(manager, name, Told("x", gate))
    homes = {(await ask(manager, session_id="s")).backend_id for _ in range(20)}
    assert len(homes) == 1, "idle, a session stays at home"
    others = {(await ask(manager, session_id=f"s{number}")).backend_id for number in range(30)}
    assert others == set("abc"), "and sessions have different homes"
    gate.clear()
    tasks = [asyncio.create_task(ask(manager, session_id="s")) for _ in range(90)]
    await until(lambda: sum(loads(manager)) == 90)
    assert max(loads(manager)) <= 41, "the average and ten more, at most"
    assert min(loads(manager)) >= 5
    gate.set()
    await asyncio.gather(*tasks)
    assert {(await ask(manager, session_id="s")).backend_id for _ in range(5)} == homes


async def test_16_overload_is_not_outage(manager):
    """16. Overload cannot be told from outage (429 queue_full vs 503 no_backend)."""
    manager.configure({"queue_size": 2})
    gate = asyncio.Event()
    backend = Told("x", gate)
    add(manager, "a", backend, max_concurrency=1)
    tasks = [asyncio.create_task(ask(manager)) for _ in range(3)]
    await until(lambda: len(manager.router.queue) == 2)
    with pytest.raises(QueueFull, match="busy") as full:
        await ask(manager)
    assert (full.value.code, full.value.http_status, full.value.retry_after) == ("queue_full", 429, 1.0)
    gate.set()
    await asyncio.gather(*tasks)
    backend.status = BackendStatus.OFFLINE
    await manager.probe("a")
    with pytest.raises(NoBackendAvailable, match="a: offline") as out:
        await ask(manager)
    assert (out.value.code, out.value.http_status) == ("no_available_backend", 503)
    assert manager.totals.rejected == 2
