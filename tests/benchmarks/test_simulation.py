import math
import statistics

import pytest

from benchmarks import routing_decision, tail_latency
from benchmarks.balancers import LeastConn, LowestLatency, Ours, Peer
from benchmarks.simulation import (
    ATTEMPTS,
    FIRST_CHUNK_S,
    Call,
    End,
    Fault,
    NotPlaced,
    Placed,
    Simulation,
    Verdict,
    Workload,
)
from uia_lab.routing.strategies import BUILT_IN

FAULTS = (
    Fault(0, 5.0, 15.0, "refuses"),
    Fault(1, 10.0, 20.0, "silent"),
    Fault(2, 0.0, math.inf, "fails", 0.5),
    Fault(3, 3.0, 30.0, "slow", 10.0),
)
FAULTY = Workload((1.0, 1.0, 1.0, 1.0, 0.5), rate=8.0, requests=300, faults=FAULTS)


def outcome(calls):
    return [(call.number, call.tried, call.ended, call.ended_at) for call in calls]


@pytest.mark.parametrize("name", tail_latency.BALANCERS)
def test_every_request_ends_once_and_tries_other_backends(name):
    simulation = Simulation(FAULTY, 1, lambda own: tail_latency.BALANCERS[name](own, 1))
    calls = simulation.run()
    assert len(calls) == FAULTY.requests
    assert {call.ended for call in calls} <= {"ok", "failed", "refused"}
    for call in calls:
        assert call.ended_at >= call.born
        assert len(set(call.tried)) == len(call.tried) <= ATTEMPTS


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_router_holds_no_lease_when_all_is_over(name):
    simulation = Simulation(FAULTY, 2, lambda own: Ours(own, name, 2))
    calls = simulation.run()
    router = simulation.balancer.router
    attempts = sum(len(call.tried) for call in calls)
    assert [entry.in_flight for entry in router.registry] == [0] * 5
    assert sum(entry.stats.figures.counters.total for entry in router.registry) == attempts
    assert not len(router.queue)


@pytest.mark.parametrize("name", tail_latency.BALANCERS)
def test_a_seed_decides_everything(name):
    def run(seed):
        return outcome(Simulation(FAULTY, seed, lambda own: tail_latency.BALANCERS[name](own, seed)).run())

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_arrivals_and_work_are_the_same_for_every_balancer():
    def arrivals(make):
        calls = Simulation(FAULTY, 5, lambda own: make(own, 5)).run()
        return [(call.born, call.work, call.session) for call in calls]

    runs = [arrivals(make) for make in tail_latency.BALANCERS.values()]
    assert all(run == runs[0] for run in runs)


def test_one_slot_with_poisson_arrivals_waits_as_long_as_theory_says():
    # M/M/1: the mean time in the system is 1 / (mu - lambda).
    workload = Workload((1.0,), rate=0.5, requests=20_000, slots=1, work="exponential")
    means = []
    for seed in range(3):
        calls = Simulation(workload, seed, lambda own: Peer(own, 0)).run()
        means.append(statistics.fmean(call.ended_at - call.born for call in calls if call.ended == "ok"))
    assert statistics.fmean(means) == pytest.approx(2.0, rel=0.06)


def test_several_slots_wait_as_long_as_erlang_says():
    # M/M/4 at 80 %: the mean wait is C(4, 3.2) / (4 - 3.2), C the probability of waiting (Erlang C).
    slots, rate = 4, 3.2
    terms = [rate**k / math.factorial(k) for k in range(slots)]
    last = rate**slots / math.factorial(slots) * slots / (slots - rate)
    expected = 1.0 + last / (sum(terms) + last) / (slots - rate)
    workload = Workload((1.0,), rate, requests=20_000, slots=slots, work="exponential")
    calls = Simulation(workload, 1, lambda own: Peer(own, 0)).run()
    assert statistics.fmean(call.ended_at - call.born for call in calls) == pytest.approx(expected, rel=0.06)


def test_a_silent_backend_costs_the_first_content_timeout():
    workload = Workload((1.0, 1.0), 0.01, 1, (Fault(0, 0, math.inf, "silent"),), work="constant")

    class First(Peer):
        def choose(self, untried, now):
            return untried[0]

    (call,) = Simulation(workload, 1, lambda own: First(own, 0)).run()
    assert (call.tried, call.ended) == ((0, 1), "ok")
    assert call.ended_at - call.born == pytest.approx(FIRST_CHUNK_S + 1.0)


def test_a_break_after_the_first_content_is_not_retried():
    workload = Workload((1.0, 1.0), 1000.0, 1, (Fault(0, 0.5, math.inf, "refuses"),), work="constant")

    class First(Peer):
        def choose(self, untried, now):
            return untried[0]

    (call,) = Simulation(workload, 1, lambda own: First(own, 0)).run()
    assert (call.tried, call.ended, call.ended_at) == ((0,), "failed", 0.5)


def fleet(kind, size=3):
    return kind(Simulation(Workload((1.0,) * size, 1.0, 1), 0, lambda own: Peer(own, 0)), 0)


def ask(balancer, now=0.0, tried=()):
    placed = balancer.place(Call(0, now, 1.0, "s", tried), now)
    return placed.backend if isinstance(placed, Placed) else placed


def tell(balancer, backend, verdict, now, elapsed=1.0, first_s=0.1):
    balancer.ended(Call(0, now, 1.0, "s"), Placed(backend), End(verdict, elapsed, first_s), now)


def test_least_conn_takes_the_least_busy_and_ties_go_round():
    balancer = fleet(LeastConn)
    # A tie pays every tied peer 1 and takes the sum from the winner; on turns 3 and 6 nobody is tied.
    # Credits after each turn: -2 1 1, -2 0 2, -2 0 2, -1 1 0, 0 0 0, 0 0 0.
    assert [ask(balancer) for _ in range(6)] == [0, 1, 2, 2, 1, 0]
    tell(balancer, 1, Verdict.OK, 0.0)
    assert ask(balancer) == 1


def test_least_conn_divides_by_the_weights():
    balancer = fleet(LeastConn, 2)
    balancer.set_weights([3, 1])
    # 0/3 = 0/1: the round goes to the heavier; 1/3 > 0/1; 1/3 < 1/1; 2/3 < 1/1; 3/3 = 1/1: the round again.
    assert [ask(balancer) for _ in range(5)] == [0, 1, 0, 0, 0]


def test_least_conn_leaves_a_failed_peer_out_for_more_than_ten_whole_seconds():
    balancer = fleet(LeastConn, 2)
    assert ask(balancer, 100.2) == 0
    tell(balancer, 0, Verdict.FAILED, 100.9)
    assert [ask(balancer, 110.9), ask(balancer, 110.9)] == [1, 1]
    assert ask(balancer, 111.0) == 0


def test_least_conn_without_anybody_left_fails_once_and_then_trusts_all():
    balancer = fleet(LeastConn, 2)
    for backend in (ask(balancer), ask(balancer)):
        tell(balancer, backend, Verdict.FAILED, 1.0)
    assert ask(balancer, 2.0) is NotPlaced.REFUSED
    assert ask(balancer, 2.0) in {0, 1}


def test_lowest_latency_tries_the_unknown_first_and_cools_down_after_four_failures():
    balancer = fleet(LowestLatency, 2)
    tell(balancer, 0, Verdict.OK, 0.0)
    assert ask(balancer) == 1
    tell(balancer, 1, Verdict.OK, 0.0, first_s=0.05)
    assert ask(balancer) == 1
    for _ in range(4):
        assert ask(balancer, 1.0) == 1
        tell(balancer, 1, Verdict.FAILED, 1.0)
    assert [ask(balancer, 5.9), ask(balancer, 6.0)] == [0, 1]


def test_the_quick_benchmark_runs(capsys):
    assert tail_latency.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    for name in tail_latency.BALANCERS:
        assert printed.count(name) >= len(tail_latency.SCENARIOS)


def test_a_verdict_needs_an_interval_without_zero():
    assert tail_latency.verdict([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], lower=True) == "ahead"
    assert tail_latency.verdict([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], lower=False) == "behind"
    assert tail_latency.verdict([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], lower=True) == "even"


def test_the_cost_of_a_decision_is_measured(capsys):
    routing_decision.main(["--rounds", "1", "--seconds", "0.001"])
    assert "best_performance: ratio" in capsys.readouterr().out
