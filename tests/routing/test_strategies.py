"""Each strategy on its own ground."""

import random
from collections import Counter

import pytest

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.events import Usage
from uia_lab.routing.router import Router
from uia_lab.routing.strategies import make_strategy
from uia_lab.routing.turns import Outcome


def serve(router, request, now=0.0, seconds=0.0, outcome=None):
    attempt = router.begin(request, now).attempt
    router.finish(attempt, outcome or Outcome("ok", usage=Usage(1, 1)), now + seconds)
    return attempt.backend.backend_id


def test_round_robin_is_smooth_and_weighted(router, add, request_for):
    add("a", weight=5.0)
    add("b")
    add("c")
    turns = [serve(router, request_for()) for _ in range(14)]
    assert Counter(turns) == {"a": 10, "b": 2, "c": 2}
    assert "".join(turns[:7]).count("aaa") == 0, "the heavy one does not get its turns in one run"


def test_round_robin_does_not_restart_when_a_status_changes(router, add, request_for):
    entries = [add(name) for name in "abc"]
    first = [serve(router, request_for()) for _ in range(2)]
    router.registry.version += 1
    entries[0].health.reason = "something else"
    third = serve(router, request_for())
    assert {*first, third} == {"a", "b", "c"}


def test_least_loaded_counts_leases_per_weight_and_breaks_ties_at_random(router, add, request_for):
    router.strategy = make_strategy("least_loaded")
    add("a", weight=2.0)
    add("b")
    held = [router.begin(request_for(), 0.0).attempt.backend.backend_id for _ in range(6)]
    assert Counter(held) == {"a": 4, "b": 2}
    idle = Router("least_loaded", rng=random.Random(1))
    for entry in router.registry:
        entry.in_flight = 0
        entry.weight = 1.0
        idle.register(entry, 0.0)
    counts = Counter(serve(idle, request_for()) for _ in range(200))
    assert min(counts["a"], counts["b"]) > 60


def test_best_performance_prefers_the_fast_and_still_tries_the_new(router, add, request_for):
    router.strategy = make_strategy("best_performance")
    add("slow")
    add("fast")
    speeds = {"slow": 1.0, "fast": 0.1, "new": 0.1}
    now = 0.0

    def turn():
        nonlocal now
        attempt = router.begin(request_for(), now).attempt
        name = attempt.backend.backend_id
        now += speeds[name]
        router.finish(attempt, Outcome("ok", usage=Usage(1, 1)), now)
        return name

    for _ in range(6):
        turn()
    assert Counter(turn() for _ in range(20))["fast"] >= 18
    add("new")
    assert "new" in {turn() for _ in range(8)}


def test_best_performance_does_not_like_fast_failures(router, add, request_for):
    router.strategy = make_strategy("best_performance")
    good, bad = add("good"), add("bad")
    from uia_lab.domain.errors import BackendFailed

    now = 0.0
    seen = Counter()
    for _ in range(60):
        attempt = router.begin(request_for(), now).attempt
        seen[attempt.backend.backend_id] += 1
        if attempt.backend is bad:
            router.finish(attempt, Outcome("failed", BackendFailed("503")), now + 0.001)
            now += 0.001
        else:
            router.finish(attempt, Outcome("ok", usage=Usage(1, 1)), now + 0.2)
            now += 0.2
    assert seen["bad"] <= 6
    assert good.stats.figures.counters.ok == seen["good"]


def test_an_embedding_says_nothing_about_chat(router, add, request_for):
    entry = add("a", tasks={"text-generation", "text-embedding"})
    serve(router, request_for(task="text-embedding"), seconds=5.0)
    assert entry.stats.estimate("m", "text-generation", stream=False) is None


def test_large_pools_are_sampled(router, add, request_for):
    router.strategy = make_strategy("best_performance")
    for number in range(50):
        add(f"b{number}")
    decision = router.begin(request_for(), 0.0).attempt.decision
    assert len(decision.candidates) == 4
    assert decision.eligible == 50


def test_an_unknown_strategy_is_refused_with_the_list():
    with pytest.raises(BadRequest, match=r"best_performance, cost, least_loaded") as caught:
        make_strategy("fastest")
    assert caught.value.param == "strategy"


def test_weighted_random_keeps_to_the_weights(router, add, request_for):
    router.strategy = make_strategy("weighted_random")
    add("a", weight=3.0)
    add("b")
    counts = Counter(serve(router, request_for()) for _ in range(2000))
    assert 1400 < counts["a"] < 1600


def test_affinity_keeps_a_session_and_moves_little_when_a_backend_leaves(router, add, request_for):
    router.strategy = make_strategy("prefix_affinity")
    for name in "abcd":
        add(name)
    homes = {session: serve(router, request_for(session_id=session)) for session in map(str, range(200))}
    assert set(homes.values()) == set("abcd")
    assert all(serve(router, request_for(session_id=session)) == home for session, home in homes.items())
    router.unregister("a", 0.0)
    moved = [s for s, home in homes.items() if serve(router, request_for(session_id=s)) != home]
    assert {homes[session] for session in moved} == {"a"}, "only those of the one that left move"


def test_affinity_yields_to_load(router, add, request_for):
    router.strategy = make_strategy("prefix_affinity")
    for name in "abcd":
        add(name)
    held = [router.begin(request_for(session_id="s"), 0.0).attempt.backend for _ in range(60)]
    loads = Counter(entry.backend_id for entry in held)
    assert max(loads.values()) <= 30
    assert len(loads) > 1


def test_cost_takes_the_cheapest_and_spreads_over_equals(router, add, request_for):
    router.strategy = make_strategy("cost")
    cheap, dear, free = add("cheap"), add("dear"), add("free", max_concurrency=1)
    import dataclasses

    cheap.capabilities = dataclasses.replace(cheap.capabilities, price={"input": 0.1, "output": 0.2})
    dear.capabilities = dataclasses.replace(dear.capabilities, price={"input": 3.0, "output": 15.0})
    assert free.capabilities.price is None
    first = router.begin(request_for(), 0.0).attempt
    assert first.backend is free
    assert router.begin(request_for(), 0.0).attempt.backend is cheap
    other = add("cheap2")
    other.capabilities = cheap.capabilities
    assert router.begin(request_for(), 0.0).attempt.backend is other, "the less loaded of two equals"


def test_best_performance_looks_again_at_one_it_has_left_alone(router, add, request_for):
    router.strategy = make_strategy("best_performance")
    slow, _ = add("slow"), add("fast")
    now, seconds = 0.0, {"slow": 10.0, "fast": 0.01}

    def turn():
        nonlocal now
        attempt = router.begin(request_for(), now).attempt
        name = attempt.backend.backend_id
        router.finish(attempt, Outcome("ok", usage=Usage(1, 1)), now + seconds[name])
        now += seconds[name] + 1.0
        return name

    for _ in range(20):
        turn()
    before = slow.stats.figures.counters.total
    seconds["slow"] = 0.001
    for _ in range(600):
        turn()
    assert slow.stats.figures.counters.total > before + 50, "what became fast again gets traffic again"


def test_alike_backends_are_chosen_by_load_and_the_faster_one_when_idle(router, add, request_for):
    router.strategy = make_strategy("best_performance")
    add("quick")
    add("slower")
    now = 0.0
    for name, seconds in (("quick", 1.0), ("slower", 1.5)):
        attempt = router.begin(request_for(backend_id=name), now).attempt
        now += seconds
        router.finish(attempt, Outcome("ok", usage=Usage(1, 1)), now)
    held = [router.begin(request_for(), now).attempt.backend.backend_id for _ in range(6)]
    assert held[0] == "quick"
    assert Counter(held) == {"quick": 3, "slower": 3}


def test_answers_in_no_time_at_all_are_compared_too(router, add, request_for):
    router.strategy = make_strategy("best_performance")
    add("a")
    add("b")
    assert {serve(router, request_for()) for _ in range(50)} == {"a", "b"}
