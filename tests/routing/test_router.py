"""Leases, the queue, and what the end of an attempt teaches."""

import pytest

from uia_lab.domain.backends import BackendStatus, BackendType, Probe
from uia_lab.domain.errors import BackendFailed, NoBackendAvailable, QueueFull, RateLimited
from uia_lab.routing.turns import Expired, Granted, Outcome, Queued, Refused

OK = Outcome("ok")


def granted(answer):
    assert isinstance(answer, Granted), answer
    return answer.attempt


def test_a_lease_is_counted_once(router, add, request_for):
    entry = add("a")
    attempt = granted(router.begin(request_for(), 0.0))
    assert entry.in_flight == 1
    router.finish(attempt, OK, 1.0)
    router.finish(attempt, OK, 2.0)
    assert entry.in_flight == 0
    assert (entry.stats.figures.counters.total, entry.stats.figures.counters.ok) == (1, 1)


def test_a_full_backend_lets_wait_and_serves_in_order(router, add, request_for):
    add("a", max_concurrency=1)
    first = granted(router.begin(request_for(), 0.0))
    early = router.begin(request_for(), 0.1)
    late = router.begin(request_for(), 0.2)
    assert isinstance(early, Queued)
    assert isinstance(late, Queued)
    (turn,) = router.finish(first, OK, 1.0)
    assert turn.ticket is early.ticket
    (turn,) = router.finish(turn.attempt, OK, 2.0)
    assert turn.ticket is late.ticket


def test_priority_comes_before_age_and_callers_take_turns(router, add, request_for):
    router.queue.size = 10
    add("a", max_concurrency=1)
    running = granted(router.begin(request_for(), 0.0))
    for principal, priority in (("ann", 0), ("ann", 0), ("bob", 0), ("ann", 5)):
        assert isinstance(router.begin(request_for(principal=principal, priority=priority), 0.0), Queued)
    order = []
    while True:
        turns = router.finish(running, OK, 1.0)
        if not turns:
            break
        running = turns[0].attempt
        order.append((running.request.principal, running.request.routing.priority))
    assert order == [("ann", 5), ("bob", 0), ("ann", 0), ("ann", 0)]


def test_a_full_queue_refuses_with_a_time_to_come_back(router, add, request_for):
    add("a", max_concurrency=1)
    granted(router.begin(request_for(), 0.0))
    for _ in range(3):
        assert isinstance(router.begin(request_for(), 0.0), Queued)
    answer = router.begin(request_for(), 0.0)
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, QueueFull)
    assert answer.error.retry_after == 1.0


def test_waiting_ends_at_the_timeout_and_when_the_caller_leaves(router, add, request_for):
    add("a", max_concurrency=1)
    attempt = granted(router.begin(request_for(), 0.0))
    late = router.begin(request_for(), 0.0)
    gone = router.begin(request_for(), 1.0)
    router.leave(gone.ticket)
    assert router.next_tick == 30.0
    assert router.tick(29.9) == []
    (turn,) = router.tick(30.0)
    assert isinstance(turn, Expired)
    assert turn.ticket is late.ticket
    assert isinstance(turn.error, QueueFull)
    assert router.finish(attempt, OK, 31.0) == []


def test_those_who_wait_only_for_a_backend_that_leaves_are_told(router, add, request_for):
    add("a", max_concurrency=1)
    granted(router.begin(request_for(), 0.0))
    waiting = router.begin(request_for(), 0.0)
    _, turns = router.unregister("a", 1.0)
    (turn,) = turns
    assert isinstance(turn, Expired)
    assert turn.ticket is waiting.ticket
    assert not len(router.queue)


def test_a_tried_backend_is_not_tried_again(router, add, request_for):
    add("a")
    add("b")
    first = granted(router.begin(request_for(), 0.0))
    second = granted(
        router.begin(request_for(), 0.0, number=2, excluded=frozenset({(first.backend.backend_id, "m")}))
    )
    assert second.backend is not first.backend
    answer = router.begin(request_for(), 0.0, number=3, excluded=frozenset({("a", "m"), ("b", "m")}))
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, NoBackendAvailable)


def test_five_faults_in_a_row_close_a_backend_for_a_while(router, add, request_for):
    entry = add("a")
    for second in range(5):
        attempt = granted(router.begin(request_for(), float(second)))
        router.finish(attempt, Outcome("failed", BackendFailed("boom")), float(second))
    assert entry.health.status is BackendStatus.UNHEALTHY
    assert not entry.routable
    assert "boom" in entry.health.reason
    waiting = router.begin(request_for(), 5.0)
    assert isinstance(waiting, Queued), "the cool-down is shorter than the queue's patience"
    assert router.tick(7.9) == []
    (turn,) = router.tick(10.0)
    assert isinstance(router.begin(request_for(), 10.0), Queued), "one trial at a time"
    (turn,) = router.finish(granted(turn), OK, 10.1)
    assert entry.health.status is BackendStatus.DEGRADED
    router.finish(granted(turn), OK, 10.2)
    assert entry.health.status is BackendStatus.HEALTHY


def test_back_pressure_is_no_fault(router, add, request_for):
    entry = add("a")
    other = add("b")
    while (attempt := granted(router.begin(request_for(), 0.0))).backend is not entry:
        router.finish(attempt, OK, 0.0)
    router.finish(attempt, Outcome("rejected", RateLimited("slow down", retry_after=7.0)), 0.0)
    assert entry.health.breaker.consecutive == 0
    assert not entry.routable
    assert all(granted(router.begin(request_for(), 1.0)).backend is other for _ in range(4))
    router.tick(7.0)
    assert entry.routable


def test_nothing_is_healthy_before_a_probe_or_a_success(router, add, request_for):
    entry = add("a")
    assert entry.health.status is BackendStatus.UNKNOWN
    router.probed(entry, Probe(BackendStatus.OFFLINE, "refused"), 0.0)
    answer = router.begin(request_for(), 0.0)
    assert isinstance(answer, Refused)
    assert "offline: refused" in answer.error.message
    router.probed(entry, Probe(BackendStatus.HEALTHY, "up"), 1.0)
    assert entry.health.status is BackendStatus.HEALTHY
    granted(router.begin(request_for(), 1.0))


def test_a_passing_probe_does_not_reopen_what_fails_real_requests(router, add, request_for):
    entry = add("a")
    for _ in range(5):
        router.finish(
            granted(router.begin(request_for(), 0.0)), Outcome("failed", BackendFailed("boom")), 0.0
        )
    router.probed(entry, Probe(BackendStatus.HEALTHY, "port answers"), 1.0)
    assert entry.health.status is BackendStatus.UNHEALTHY


def test_a_drained_backend_gets_nothing_new(router, add, request_for):
    entry = add("a")
    attempt = granted(router.begin(request_for(), 0.0))
    router.set_enabled(entry, 0.0, enabled=False)
    answer = router.begin(request_for(), 0.0)
    assert isinstance(answer, Refused)
    assert "drained" in answer.error.message
    assert router.finish(attempt, OK, 1.0) == []
    router.set_enabled(entry, 1.0, enabled=True)
    granted(router.begin(request_for(), 1.0))


def test_select_takes_no_lease_but_the_turn_advances(router, add, request_for):
    entries = [add("a"), add("b")]
    chosen = [router.choose(request_for(), 0.0) for _ in range(4)]
    assert [chosen.count(entry) for entry in entries] == [2, 2]
    assert all(entry.in_flight == 0 for entry in entries)


@pytest.mark.parametrize("strategy", ["round_robin", "least_loaded", "best_performance"])
def test_explain_foretells_the_winner_and_changes_nothing(router, add, request_for, strategy):
    from uia_lab.routing.strategies import make_strategy

    router.strategy = make_strategy(strategy)
    for name in "abcdefgh":
        add(name)
    add("other", models=("n",))
    for _ in range(20):
        told = router.explain(request_for(), 0.0)
        again = router.explain(request_for(), 0.0)
        assert told == again
        assert granted(router.begin(request_for(), 0.0)).backend.backend_id == told.winner
        assert told.eligible == 8
        reasons = {item.backend_id: item.reason for item in told.candidates}
        assert reasons["other"] == "model: does not serve m"


def test_preferred_types_are_tiers(router, add, request_for):
    add("api", BackendType.API, max_concurrency=1)
    add("gpu", BackendType.GPU)
    preferred = request_for(preferred_types=(BackendType.API,))
    first = granted(router.begin(preferred, 0.0))
    assert first.backend.backend_id == "api"
    assert granted(router.begin(preferred, 0.0)).backend.backend_id == "gpu"
    router.finish(first, OK, 1.0)
    assert granted(router.begin(preferred, 1.0)).backend.backend_id == "api"
