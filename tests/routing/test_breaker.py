"""When a breaker opens, how it tries again, and how it comes back."""

import pytest

from uia_lab.domain.errors import BackendFailed
from uia_lab.routing.breaker import OPEN_MAX_S, Breaker
from uia_lab.routing.turns import Granted, Outcome

FAULT = Outcome("failed", BackendFailed("boom"))
OK = Outcome("ok")


def ended(breaker, now, *, ok):
    if ok:
        breaker.success(now, now)
    else:
        breaker.failure(now, now, 1.0)


def opened(times=1):
    breaker = Breaker()
    now = 0.0
    for number in range(times):
        for _ in range(5 if number == 0 else 1):
            breaker.failure(now, now, 1.0)
        if number < times - 1:
            now = breaker.opened_until
            assert breaker.passed(now)
    return breaker, now


def test_five_in_a_row_open_it_and_four_do_not():
    breaker = Breaker()
    for _ in range(4):
        breaker.failure(0.0, 0.0, 1.0)
    assert not breaker.is_open
    breaker.success(0.0, 0.0)
    for _ in range(4):
        breaker.failure(0.0, 0.0, 1.0)
    assert not breaker.is_open
    breaker.failure(0.0, 0.0, 1.0)
    assert breaker.is_open
    assert not breaker.by_rate


def test_half_of_ten_within_thirty_seconds_open_it():
    breaker = Breaker()
    for second in range(10):
        ended(breaker, float(second), ok=second % 2 == 0)
    assert breaker.is_open
    assert breaker.by_rate
    slow = Breaker()
    for second in range(10):
        ended(slow, second * 10.0, ok=second % 2 == 0)
    assert not slow.is_open, "ten faults in a hundred seconds are another matter"


def test_each_opening_lasts_twice_as_long_up_to_a_minute():
    lasts = []
    for times in range(1, 7):
        breaker, now = opened(times)
        lasts.append(breaker.opened_until - now)
    assert lasts == [5.0, 10.0, 20.0, 40.0, 60.0, OPEN_MAX_S]


def test_jitter_spreads_the_returns():
    breaker = Breaker()
    for _ in range(5):
        breaker.failure(0.0, 0.0, 0.8)
    assert breaker.opened_until == pytest.approx(4.0)


def test_it_tries_one_request_at_a_time_and_closes_after_two():
    breaker, _ = opened()
    assert not breaker.passed(4.9)
    assert breaker.passed(5.0)
    assert breaker.admits
    breaker.trial = True
    assert not breaker.admits
    breaker.trial = False
    breaker.success(5.1, 5.1)
    assert breaker.half_open
    breaker.success(5.2, 5.2)
    assert not breaker.half_open
    assert not breaker.is_open


def test_it_starts_slowly():
    breaker, _ = opened()
    breaker.passed(5.0)
    breaker.success(5.0, 5.0)
    breaker.success(5.0, 5.0)
    assert breaker.strength(5.0) == 0.1
    assert breaker.strength(10.0) == pytest.approx(0.5)
    assert breaker.strength(15.0) == breaker.strength(1000.0) == 1.0
    assert Breaker().strength(0.0) == 1.0, "one that never broke has its full share at once"


def drive(router, request_for, outcomes, now=0.0):
    for name, outcome in outcomes:
        answer = router.begin(request_for(backend_id=name), now)
        assert isinstance(answer, Granted), (name, answer)
        router.finish(answer.attempt, outcome, now)


def reachable(router, request_for):
    demand = router.eligibility.demand(request_for())
    return {entry.backend_id for tier in router.eligibility.find(demand).tiers for entry in tier.members}


def test_never_more_than_half_stay_out(router, add, request_for):
    for name in "abcd":
        add(name)
    for name in "abc":
        drive(router, request_for, [(name, FAULT)] * 5, now=float("abc".index(name)))
    assert reachable(router, request_for) == {"a", "d"}, "the one that returns first is let in all the same"
    told = {item.backend_id: item for item in router.explain(request_for(), 3.0).candidates}
    assert told["a"].kept
    assert "too many are out" in told["a"].reason
    assert not told["b"].kept
    assert "boom" in told["b"].reason
    drive(router, request_for, [("d", FAULT)] * 5, now=3.0)
    assert len(reachable(router, request_for)) == 2


def test_the_only_one_stays_out_after_faults_in_a_row_but_not_on_its_rate(router, add, request_for):
    add("a")
    drive(router, request_for, [("a", FAULT if turn % 2 else OK) for turn in range(10)])
    assert router.registry.get("a").health.breaker.by_rate
    assert reachable(router, request_for) == {"a"}
    add("a")
    drive(router, request_for, [("a", FAULT)] * 5)
    assert reachable(router, request_for) == set()


def test_transitions_are_remembered(router, add, request_for):
    add("a")
    add("b")
    drive(router, request_for, [("a", FAULT)] * 5)
    router.tick(10.0)
    for now in (10.0, 11.0):
        drive(router, request_for, [("a", OK)], now)
    changes = [(item.status, item.routable) for item in router.transitions if item.backend_id == "a"]
    assert changes == [("degraded", True), ("unhealthy", False), ("degraded", True), ("healthy", True)]
    assert "boom" in next(item.reason for item in router.transitions if item.status == "unhealthy")


def test_a_slow_start_takes_its_share_slowly(router, add, request_for):
    returning, _ = add("a"), add("b")
    returning.health.breaker._closed_at = 0.0
    turns = [router.begin(request_for(), 1.0).attempt.backend.backend_id for _ in range(22)]
    assert turns.count("a") == 2


def test_what_began_before_it_opened_says_nothing(router, add, request_for):
    entry = add("a")
    add("b")
    old = [router.begin(request_for(backend_id="a"), 0.0).attempt for _ in range(2)]
    drive(router, request_for, [("a", FAULT)] * 5, now=1.0)
    router.finish(old[0], OK, 2.0)
    assert entry.health.breaker.is_open
    assert not entry.routable
    router.tick(10.0)
    router.finish(old[1], FAULT, 10.0)
    assert entry.health.breaker.half_open, "an old fault does not end the trials either"
