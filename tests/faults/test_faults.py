"""What each way to break does to the caller, the log, the backend's status, and how it comes back."""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.faults.conftest import make_manager, read, until
from tests.upstreams.fault_server import Fault
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    InferenceError,
    NoBackendAvailable,
    RateLimited,
    StreamInterrupted,
)
from uia_lab.domain.events import Chunk, Finished, Started

HEALTHY, DEGRADED, UNHEALTHY = BackendStatus.HEALTHY, BackendStatus.DEGRADED, BackendStatus.UNHEALTHY
LONGEST_OPEN_S = 80.0


class Case(NamedTuple):
    """A fault and what it is expected to be for a caller who has no other backend."""

    fault: Fault
    error: type[InferenceError]
    outcome: str
    status: BackendStatus
    reason: str
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def busy(self):
        """Whether the backend asks to be left alone, which is no fault."""
        return self.status is HEALTHY

    @property
    def silent(self):
        """Whether only time shows it."""
        return self.error is BackendTimeout


AT_ONCE = {"after": 0}
REFUSALS = [
    Case(Fault.UNAVAILABLE, NoBackendAvailable, "failed", HEALTHY, "answered 503: overloaded"),
    Case(Fault.RATE_LIMITED, RateLimited, "rejected", HEALTHY, "answered 429: too many requests"),
    Case(Fault.SILENT_AFTER_ACCEPT, BackendTimeout, "failed", DEGRADED, "sent nothing for"),
    Case(Fault.SILENT_AFTER_HEADERS, BackendTimeout, "failed", DEGRADED, "sent nothing for"),
    Case(Fault.REFUSED, BackendFailed, "failed", DEGRADED, "the connection broke"),
]
BROKEN = [
    Case(Fault.CUT, BackendFailed, "failed", DEGRADED, "the connection broke"),
    Case(Fault.CUT, BackendFailed, "failed", DEGRADED, "without its end", {"politely": True}),
    Case(Fault.STALLED, BackendTimeout, "failed", DEGRADED, "sent nothing for"),
    Case(Fault.ERROR_FRAME, BackendFailed, "failed", DEGRADED, "the engine is out of memory"),
    Case(Fault.MALFORMED, BackendFailed, "failed", DEGRADED, "malformed chunk"),
]
CASES = REFUSALS + [case._replace(settings={**case.settings, **AT_ONCE}) for case in BROKEN]


def name_of(case):
    return case.fault.name.lower() + ("-politely" if case.settings.get("politely") else "")


every_fault = pytest.mark.parametrize("case", CASES, ids=name_of)
every_break = pytest.mark.parametrize("case", BROKEN, ids=name_of)


@pytest.fixture
async def probed(manager, fleet, impatient):
    """Both backends, seen to be healthy."""
    for name in ("first", "second"):
        assert (await manager.probe(name)).status is HEALTHY
    return fleet


def ask(manager, **hints):
    return manager.infer("generation", "m", "x", **hints)


def shown(manager, name="first"):
    """A backend as the status report shows it."""
    backends = manager.get_backend_status_report()["backends"]
    return next(item for item in backends if item["id"] == name)


@every_fault
async def test_another_backend_answers_in_silence(manager, probed, case):
    await probed.first.switch(case.fault, **case.settings)
    stream = manager.stream("generation", "m", "x")
    events = [event async for event in stream]
    assert [type(event) for event in events] == [Started, *[Chunk] * 8, Finished]
    assert (events[0].backend_id, events[0].attempt) == ("second", 2)
    assert events[-1].result == probed.second.text
    assert [(item.backend_id, item.outcome) for item in events[-1].attempts] == [
        ("first", case.outcome),
        ("second", "ok"),
    ]
    await probed.first.until_idle()
    report = manager.get_backend_status_report()
    assert (report["total_requests"], report["total_successful"]) == (1, 1)
    (record,) = manager.records
    assert (record.outcome, record.backend_id, record.error) == ("ok", "second", None)
    assert (record.chunks, record.output_tokens, len(record.attempts)) == (8, 8, 2)
    first = shown(manager)
    assert first["status"] == case.status.value
    assert case.reason in first["reason"]
    assert first["routable"] is not case.busy


@every_fault
async def test_alone_the_caller_gets_its_error(manager, register, servers, impatient, case):
    register("first", servers.first)
    await manager.probe("first")
    await servers.first.switch(case.fault, **case.settings)
    with pytest.raises(InferenceError, match=case.reason) as caught:
        await ask(manager)
    assert type(caught.value) is case.error
    assert caught.value.retry_after == (2.0 if case.fault is Fault.RATE_LIMITED else None)
    await servers.first.until_idle()
    assert servers.first.requests == (0 if case.fault is Fault.REFUSED else 1), "it is not asked twice"
    report = manager.get_backend_status_report()
    assert (report["total_requests"], report[f"total_{case.outcome}"], report["in_flight"]) == (1, 1, 0)
    (record,) = manager.records
    assert (record.outcome, record.error, record.backend_id) == (case.outcome, case.error.code, "first")
    assert case.reason in record.message
    first = shown(manager)
    assert first["status"] == case.status.value
    assert case.reason in first["reason"]
    assert first["metrics"]["active_connections"] == 0


@every_break
async def test_after_content_the_caller_is_told(manager, probed, case):
    probed.first.strike.clear()
    await probed.first.switch(case.fault, **case.settings)
    stream = manager.stream("generation", "m", "x")
    events = await read(stream, 2)
    assert [event.delta.text for event in events[1:]] == ["t0 ", "t1 "]
    probed.first.strike.set()
    with pytest.raises(StreamInterrupted, match=case.reason):
        await anext(stream)
    await probed.first.until_idle()
    assert probed.second.requests == 0, "what was delivered cannot be taken back"
    report = manager.get_backend_status_report()
    assert (report["total_failed"], report["total_successful"], report["in_flight"]) == (1, 0, 0)
    (record,) = manager.records
    assert (record.outcome, record.error, record.chunks) == ("failed", "stream_interrupted", 2)
    first = shown(manager)
    assert first["status"] == "degraded"
    assert case.reason in first["reason"]


@every_fault
async def test_traffic_stays_away_and_returns(manager, probed, case):
    await probed.first.switch(case.fault, **case.settings)
    times = 1 if case.busy else 5
    failed = await asyncio.gather(
        *(ask(manager, backend_id="first") for _ in range(times)), return_exceptions=True
    )
    assert {type(error) for error in failed} == {case.error}
    first = shown(manager)
    assert first["routable"] is False
    assert first["status"] == ("healthy" if case.busy else "unhealthy")
    seen = probed.first.requests
    results = await asyncio.gather(*(ask(manager) for _ in range(20)))
    assert {result.backend_id for result in results} == {"second"}
    assert probed.first.requests == seen, "nothing is sent there"

    await probed.first.switch(Fault.NONE)
    manager.pass_time(LONGEST_OPEN_S)
    results = [await ask(manager) for _ in range(20)]
    assert {result.text for result in results} == {probed.first.text}
    assert sum(result.backend_id == "first" for result in results) >= 10
    first = shown(manager)
    assert (first["status"], first["routable"], first["reason"]) == ("healthy", True, "serving requests")


@every_fault
async def test_alone_one_waits_for_its_return(manager, register, servers, impatient, case):
    register("first", servers.first)
    await manager.probe("first")
    await servers.first.switch(case.fault, **case.settings)
    failing = (ask(manager) for _ in range(1 if case.busy else 5))
    await asyncio.gather(*failing, return_exceptions=True)
    await servers.first.switch(Fault.NONE)
    asked = servers.first.requests
    waiting = [asyncio.create_task(ask(manager)) for _ in range(3)]
    await until(lambda: len(manager.router.queue) == 3)
    assert servers.first.requests == asked
    manager.pass_time(10.0)
    for result in await asyncio.gather(*waiting):
        assert result.text == servers.first.text
    if not case.busy:
        assert shown(manager)["status"] == "healthy"


async def test_a_break_that_lasts_is_tried_with_one_request_at_a_time(manager, probed):
    await probed.first.switch(Fault.ERROR_FRAME, after=0)
    for _ in range(5):
        with pytest.raises(BackendFailed):
            await ask(manager, backend_id="first")
    tried = []
    for _ in range(4):
        manager.pass_time(LONGEST_OPEN_S)
        before = probed.first.requests
        results = await asyncio.gather(*(ask(manager) for _ in range(10)))
        assert {result.backend_id for result in results} == {"second"}
        tried.append(probed.first.requests - before)
        assert shown(manager)["status"] == "unhealthy"
    assert tried == [1] * 4


async def test_each_opening_lasts_longer(manager, probed):
    await probed.first.switch(Fault.ERROR_FRAME, after=0)
    for _ in range(5):
        with pytest.raises(BackendFailed):
            await ask(manager, backend_id="first")
    lengths = []
    for _ in range(6):
        entry = manager.router.registry.get("first")
        lengths.append(entry.health.breaker.opened_until - manager.clock())
        manager.pass_time(lengths[-1] + 0.01)
        with pytest.raises(BackendFailed):
            await ask(manager, backend_id="first")
    for length, middle in zip(lengths, (5, 10, 20, 40, 60, 60), strict=True):
        assert 0.75 * middle < length <= 1.2 * middle


async def test_a_trial_that_its_caller_leaves_is_no_verdict(manager, probed):
    await probed.first.switch(Fault.ERROR_FRAME, after=0)
    for _ in range(5):
        with pytest.raises(BackendFailed):
            await ask(manager, backend_id="first")
    await probed.first.switch(Fault.STALLED, after=2)
    manager.pass_time(LONGEST_OPEN_S)
    trial = manager.stream("generation", "m", "x", backend_id="first")
    await read(trial, 2)
    assert (await ask(manager)).backend_id == "second", "one trial at a time"
    await trial.aclose()
    await probed.first.until_idle()
    await probed.first.switch(Fault.NONE)
    for _ in range(2):
        assert (await ask(manager, backend_id="first")).text == probed.first.text
    assert shown(manager)["status"] == "healthy"


async def test_a_stream_from_before_the_break_does_not_end_it(manager, probed):
    """A slow answer that began in good times says nothing of now."""
    probed.first.strike.clear()
    await probed.first.switch(Fault.SLOW, gap_s=0.0)
    old = manager.stream("generation", "m", "x", backend_id="first")
    await read(old, 2)
    await probed.first.switch(Fault.ERROR_FRAME)
    probed.first.after = 0
    failing = [asyncio.create_task(ask(manager, backend_id="first")) for _ in range(5)]
    await probed.first.until(lambda server: server.requests == 6)
    probed.first.strike.set()
    await asyncio.gather(*failing, return_exceptions=True)
    assert shown(manager)["status"] == "unhealthy"
    assert [event async for event in old][-1].result == probed.first.text
    assert shown(manager)["routable"] is False
    assert shown(manager)["status"] == "unhealthy"


async def test_a_slow_server_is_served_whole_and_gets_less(manager, probed):
    manager.set_strategy("best_performance")
    manager.set_weight("first", 1.0)
    await probed.first.switch(Fault.SLOW, gap_s=0.01)
    for name in ("first", "second"):
        assert (await ask(manager, backend_id=name)).text == probed.first.text
    before = probed.first.requests
    results = [await ask(manager) for _ in range(40)]
    assert {result.text for result in results} == {probed.first.text}
    assert probed.first.requests - before <= 8
    assert shown(manager)["status"] == "healthy", "slow is no fault"
    await probed.first.switch(Fault.NONE)
    manager.pass_time(LONGEST_OPEN_S)
    results = [await ask(manager) for _ in range(40)]
    assert any(result.backend_id == "first" for result in results), "and it is tried again"


async def test_slower_than_the_patience_is_silence(manager, probed):
    await probed.first.switch(Fault.SLOW, gap_s=5.0)
    result = await ask(manager)
    assert (result.backend_id, result.attempts[0].error) == ("second", "backend_timeout")


@pytest.mark.parametrize("period", [1, 3])
async def test_a_flapping_server_costs_no_answer(manager, probed, period):
    await probed.first.switch(Fault.FLAPPING, period=period)
    for _ in range(12):
        assert (await ask(manager)).text == probed.second.text
        manager.pass_time(1.5)
    assert probed.first.requests >= 6, "what flaps is tried again and again"
    report = manager.get_backend_status_report()
    assert (report["total_successful"], report["total_failed"]) == (12, 0)
    await probed.first.switch(Fault.NONE)
    manager.pass_time(LONGEST_OPEN_S)
    await ask(manager, backend_id="first")
    assert shown(manager)["status"] == "healthy"


async def test_one_request_in_two_that_fails_opens_the_breaker(manager, probed):
    """At least half of ten, though never five in a row."""
    for number in range(10):
        bad = number % 2 == 0
        await probed.first.switch(Fault.ERROR_FRAME if bad else Fault.NONE, after=0)
        await asyncio.gather(ask(manager, backend_id="first"), return_exceptions=True)
        if number < 8:
            assert shown(manager)["routable"] is True
    await probed.first.switch(Fault.ERROR_FRAME, after=0)
    await asyncio.gather(ask(manager, backend_id="first"), return_exceptions=True)
    assert (shown(manager)["status"], shown(manager)["routable"]) == ("unhealthy", False)


async def test_the_only_one_is_not_ejected_for_its_rate(manager, register, servers):
    """Three faults in four, never five in a row: it is asked all the same, at once."""
    register("first", servers.first)
    await manager.probe("first")
    for number in range(16):
        bad = number % 4 < 3
        await servers.first.switch(Fault.ERROR_FRAME if bad else Fault.NONE, after=0)
        (ended,) = await asyncio.gather(ask(manager, deadline_s=1.0), return_exceptions=True)
        assert isinstance(ended, BackendFailed) is bad, f"request {number}: {ended!r}"
    assert servers.first.requests == 16


async def test_not_more_than_half_stay_out(manager, register, servers):
    """With every breaker open, half of the backends are asked all the same."""
    for number in range(4):
        register(f"b{number}", servers.first)
    await servers.first.switch(Fault.ERROR_FRAME, after=0)
    asked = [ask(manager, backend_id=f"b{number}") for number in range(4) for _ in range(8)]
    await asyncio.gather(*asked, return_exceptions=True)
    assert {item.status for item in manager.list_backends()} == {UNHEALTHY}
    before = {item.backend_id: item.metrics.total_requests for item in manager.list_backends()}
    await asyncio.gather(*(ask(manager, max_attempts=1) for _ in range(20)), return_exceptions=True)
    after = {item.backend_id: item.metrics.total_requests for item in manager.list_backends()}
    assert sum(after.values()) == sum(before.values()) + 20
    assert sum(after[name] > before[name] for name in after) == 2
    await servers.first.switch(Fault.NONE)
    for _ in range(4):
        assert (await ask(manager, deadline_s=5.0)).text == servers.first.text
    assert HEALTHY in {item.status for item in manager.list_backends()}


async def test_background_probes_find_the_fall_and_the_return(servers, build):
    """Without one request: refused, then back."""
    manager = make_manager(enable_health_checks=True, health_check_interval=0.1)
    manager.register_backend("first", "api", "First", build(servers.first))

    async def status(wanted):
        async with asyncio.timeout(10):
            while manager.get_backend("first").status is not wanted:
                await asyncio.sleep(0.005)

    try:
        await manager.probe("first")
        await status(HEALTHY)
        await servers.first.switch(Fault.REFUSED)
        await status(BackendStatus.OFFLINE)
        assert manager.get_backend("first").routable is False
        with pytest.raises(NoBackendAvailable, match="offline"):
            await ask(manager)
        await servers.first.switch(Fault.NONE)
        await status(HEALTHY)
        assert (await ask(manager)).text == servers.first.text
        assert servers.first.requests == 1, "probes run no inference"
    finally:
        await manager.aclose()


async def test_every_change_of_status_is_remembered(manager, probed):
    await probed.first.switch(Fault.ERROR_FRAME, after=0)
    for _ in range(5):
        with pytest.raises(BackendFailed):
            await ask(manager, backend_id="first")
    await probed.first.switch(Fault.NONE)
    manager.pass_time(LONGEST_OPEN_S)
    for _ in range(2):
        await ask(manager, backend_id="first")
    changes = [item for item in manager.transitions if item["backend_id"] == "first"]
    assert [(item["was"], item["status"]) for item in changes if item["was"] != item["status"]] == [
        ("unknown", "healthy"),
        ("healthy", "degraded"),
        ("degraded", "unhealthy"),
        ("unhealthy", "degraded"),
        ("degraded", "healthy"),
    ]
    assert all(item["reason"] for item in changes)
    assert [item["at"] for item in changes] == sorted(item["at"] for item in changes)


async def test_a_fall_and_return_during_a_pause_is_not_shown_for_ever(manager, probed):
    """Asked to be left alone, then down, then back: what takes requests is not offline."""
    await probed.first.switch(Fault.RATE_LIMITED, retry_after=20)
    await asyncio.gather(ask(manager, backend_id="first"), return_exceptions=True)
    await probed.first.switch(Fault.REFUSED)
    assert (await manager.probe("first")).status is BackendStatus.OFFLINE
    await probed.first.switch(Fault.NONE)
    await manager.probe("first")
    manager.pass_time(25.0)
    info = manager.get_backend("first")
    assert info.routable
    assert info.status is not BackendStatus.OFFLINE
    assert "no answer" not in info.reason
