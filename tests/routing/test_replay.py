import random

import pytest

from uia_lab.domain.events import Attempted
from uia_lab.domain.records import RequestRecord
from uia_lab.routing.past import Experience, past_of
from uia_lab.routing.replay import House, Replay, Stopped
from uia_lab.routing.router import Router
from uia_lab.routing.tally import happened


def record(number, at, backend="a", seconds=1.0, outcome="ok", error=None, attempts=None, **fields):
    given = {"first_token_s": seconds / 2, "output_tokens": 10, "stream": True} | fields
    if attempts is None:
        attempts = [(backend, "failed" if error else outcome, seconds)] if backend else []
    return RequestRecord(
        id=f"r{number}",
        instance_id="i",
        principal="p",
        task="text-generation",
        model="m",
        outcome=outcome,
        began_at=1_000_000.0 + at,
        latency_s=sum(item[2] for item in attempts) + given.pop("waited", 0.0),
        backend_id=backend,
        error=error,
        attempts=tuple(
            Attempted(name, end, s * 1000, None if end == "ok" else error or "backend_failed")
            for name, end, s in attempts
        ),
        **given,
    )


@pytest.fixture
def house(add, router):
    def make(*backends, **settings):
        for name, fields in backends:
            add(name, models={"m"}, **fields)
        return House(**{**vars_of(House.of(router, 3)), **settings})

    return make


def vars_of(house):
    return {name: getattr(house, name) for name in House.__slots__}


def run(records, house, strategy, stop=lambda: False):
    past = [item for item in map(past_of, records) if item is not None]
    return Replay(past, Experience(past, records), house, strategy, stop).run()


def total(tally):
    return sum(tally.outcomes.values())


def test_alone_it_takes_as_long_as_it_took(house):
    records = [record(n, 10 * n, seconds=1 + n) for n in range(5)]
    tally = run(records, house(("a", {})), "round_robin")
    assert tally.latencies == pytest.approx([1, 2, 3, 4, 5])
    assert tally.first == pytest.approx([0.5, 1, 1.5, 2, 2.5])
    assert tally.to_dict()["share"] == {"a": 1.0}
    assert happened(map(past_of, records)).latencies == pytest.approx(tally.latencies)


def test_elsewhere_in_proportion_to_the_speeds(house):
    # "a" takes 4 s for what takes "b" 1 s; under round_robin each got half.
    records = [record(n, 20 * n, "ab"[n % 2], 4.0 if n % 2 == 0 else 1.0) for n in range(200)]
    there = house(("a", {}), ("b", {}))
    even = run(records, there, "round_robin").to_dict()
    assert even["share"] == {"a": 0.5, "b": 0.5}
    assert even["p99_ms"] == pytest.approx(4000)
    better = run(records, there, "best_performance").to_dict()
    assert better["share"]["b"] > 0.9
    assert better["p50_ms"] == pytest.approx(1000)


def test_who_is_beyond_the_limit_waits_in_the_queue(house):
    records = [record(n, 0.0, seconds=1.0) for n in range(4)]
    tally = run(records, house(("a", {"max_concurrency": 1})), "least_loaded")
    assert sorted(tally.latencies) == pytest.approx([1, 2, 3, 4])
    assert (tally.queued, tally.outcomes["ok"]) == (3, 4)
    impatient = run(records, house(queue_timeout=1.5), "least_loaded")
    assert impatient.outcomes == {"ok": 2, "failed": 0, "cancelled": 0, "rejected": 2}
    narrow = run(records, house(queue_size=1), "least_loaded")
    assert narrow.outcomes["rejected"] == 2


def test_a_backend_fails_when_it_did(house):
    bad = [record(n, n, "b", attempts=[("a", "failed", 0.1), ("b", "ok", 1.0)]) for n in range(60)]
    good = [record(100 + n, 500 + n, "a") for n in range(60)]
    tally = run(bad + good, house(("a", {}), ("b", {})), "round_robin")
    assert tally.outcomes["ok"] == 120
    assert tally.retried
    # Its breaker opened, as it does: far from half of the first sixty met it.
    assert tally.retried < 30
    assert total(tally) == 120


def test_what_cannot_succeed_is_left_out_and_what_was_cancelled_takes_its_time(house):
    assert past_of(record(1, 0, outcome="failed", error="bad_request")) is None
    records = [
        record(1, 0.0, outcome="cancelled", seconds=2.0),
        record(2, 0.0, backend=None, outcome="rejected", error="queue_full", first_token_s=None),
        record(3, 0.0),
    ]
    tally = run(records, house(("a", {"max_concurrency": 1})), "round_robin")
    assert tally.outcomes == {"ok": 2, "failed": 0, "cancelled": 1, "rejected": 0}
    assert tally.latencies == pytest.approx([3.0, 4.0])


def test_a_model_that_is_gone_is_refused(house):
    tally = run([record(1, 0.0)], House.of(Router(rng=random.Random(1)), 3), "round_robin")
    assert tally.outcomes["rejected"] == 1


def test_every_request_ends_once_whatever_happens(house):
    rng = random.Random(7)
    records = []
    for n in range(800):
        failed = rng.random() < 0.2
        attempts = [("a", "failed", rng.random()), ("b", "ok", rng.random())] if failed else None
        outcome = rng.choice(["ok", "ok", "ok", "cancelled"]) if attempts is None else "ok"
        backend = "b" if failed else rng.choice("ab")
        records.append(record(n, rng.random() * 60, backend, rng.random() * 3, outcome, attempts=attempts))
    there = house(("a", {"max_concurrency": 3}), ("b", {"max_concurrency": 2}))
    for strategy in ("round_robin", "least_loaded", "best_performance", "weighted_random", "cost"):
        tally = run(records, there, strategy)
        assert total(tally) == 800
        assert run(records, there, strategy).to_dict() == tally.to_dict()
    assert all(entry.in_flight == 0 for entry in there.backends)


def test_it_can_be_ended(house):
    records = [record(n, n) for n in range(100)]
    with pytest.raises(Stopped):
        run(records, house(("a", {})), "round_robin", stop=lambda: True)
