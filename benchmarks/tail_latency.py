"""Tail latency, success and goodput of our strategies and of other balancers over simulated faults.

Every balancer gets the same arrivals, work and faults. A cell is the mean over the seeds with a bootstrap
95 % interval; the verdict compares our default with each other one seed by seed, so that luck common to
both cancels out. Run it as ``python -m benchmarks.tail_latency``.
"""

import argparse
import math
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from benchmarks.balancers import LeastConn, LowestLatency, Ours, Peer, TwoChoices
from benchmarks.simulation import Balancer, Call, Fault, Simulation, Workload
from uia_lab.routing.strategies import BUILT_IN

BACKENDS = 8
SLOTS = 4
SLO_S = 5.0
RESAMPLES = 2000
DEFAULT = "best_performance"
EQUAL = (1.0,) * BACKENDS
MIXED = tuple((BACKENDS - number) / BACKENDS for number in range(BACKENDS))

Make = Callable[[Simulation, int], Balancer]


def ours(name: str, *, probes: bool = True) -> Make:
    return lambda simulation, seed: Ours(simulation, name, seed, probes=probes)


BALANCERS: dict[str, Make] = {
    **{name: ours(name) for name in sorted(BUILT_IN, key=lambda name: name != DEFAULT)},
    f"{DEFAULT}, no probes": ours(DEFAULT, probes=False),
    "nginx least_conn": LeastConn,
    "random": Peer,
    "LiteLLM lowest latency": LowestLatency,
    "power of two": TwoChoices,
}
OTHERS = ("nginx least_conn", "random", "LiteLLM lowest latency", "power of two")
LOWER_IS_BETTER = {"p50": True, "p99": True, "success": False, "goodput": False}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One situation.

    Args:
        title: What happens, in words.
        speeds: Of the backends.
        load: Requests as a share of what the fleet can answer when all is well.
        faults: What goes wrong, given how long the run takes.
        requests: How many, where that is the point.
        work: Distribution of the work.
        stream: Whether requests are streamed.
    """

    title: str
    speeds: tuple[float, ...] = EQUAL
    load: float = 0.6
    faults: Callable[[float], Iterable[Fault]] = lambda _: ()
    requests: int | None = None
    work: str = "lognormal"
    stream: bool = True

    def workload(self, requests: int) -> Workload:
        """The workload; faults are spread over the time the requests take to arrive."""
        count = self.requests or requests
        rate = self.load * SLOTS * sum(self.speeds)
        faults = tuple(self.faults(count / rate))
        return Workload(self.speeds, rate, count, faults, SLOTS, self.work, self.stream)


def flips(seconds: float) -> Iterable[Fault]:
    """Half of the fleet is 5 times slow for 5 s, then the other half."""
    for turn in range(math.ceil(seconds / 5.0)):
        for number in range(turn % 2, BACKENDS, 2):
            yield Fault(number, 5.0 * turn, 5.0 * (turn + 1), "slow", 5.0)


SCENARIOS = {
    "a": Scenario("speeds 1x to 8x", MIXED),
    "a1": Scenario("speeds 1x to 8x, 15 % load", MIXED, load=0.15),
    "a2": Scenario("speeds 1x to 8x, not streamed", MIXED, stream=False),
    "b": Scenario("one turns 10x slow midway", faults=lambda t: [Fault(0, t / 2, math.inf, "slow", 10.0)]),
    "c": Scenario(
        "one fails half its requests at once", faults=lambda _: [Fault(0, 0, math.inf, "fails", 0.5)]
    ),
    "c2": Scenario(
        "three of eight fail nine of ten requests at once, for a third of the time",
        load=0.4,
        faults=lambda t: [Fault(number, t / 3, 2 * t / 3, "fails", 0.9) for number in range(3)],
    ),
    "d1": Scenario(
        "one refuses for a third of the time", faults=lambda t: [Fault(0, t / 3, 2 * t / 3, "refuses")]
    ),
    "d2": Scenario(
        "one is silent for a third of the time", faults=lambda t: [Fault(0, t / 3, 2 * t / 3, "silent")]
    ),
    "e": Scenario("all equal, 90 % load", load=0.9),
    "f1": Scenario("40 requests to equal backends", load=0.8, requests=40, work="constant"),
    "f2": Scenario("halves of the fleet take turns at being 5x slow, every 5 s", load=0.3, faults=flips),
}


def percentile(ordered: Sequence[float], q: float) -> float:
    """Nearest rank."""
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] if ordered else math.nan


def figures(calls: Sequence[Call]) -> dict[str, float]:
    """What one run showed; latencies are those of answered requests."""
    latencies = sorted(call.ended_at - call.born for call in calls if call.ended == "ok")
    seconds = max(call.born for call in calls)
    return {
        "p50": percentile(latencies, 50),
        "p99": percentile(latencies, 99),
        "success": len(latencies) / len(calls) * 100,
        "goodput": sum(latency <= SLO_S for latency in latencies) / seconds,
    }


def measure(job: tuple[str, str, int, int]) -> dict[str, float]:
    scenario, balancer, seed, requests = job
    workload = SCENARIOS[scenario].workload(requests)
    return figures(Simulation(workload, seed, lambda own: BALANCERS[balancer](own, seed)).run())


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its bootstrap 95 % interval."""
    rng = random.Random(len(values))  # noqa: S311 - the same intervals for the same figures
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.fmean(values), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def verdict(mine: Sequence[float], theirs: Sequence[float], *, lower: bool) -> str:
    """``ahead`` or ``behind`` where the interval of the paired difference excludes 0."""
    sign = -1.0 if lower else 1.0
    _, low, high = interval([sign * (a - b) for a, b in zip(mine, theirs, strict=True)])
    if low > 0:
        return "ahead"
    return "behind" if high < 0 else "even"


def table(scenario: str, results: dict[str, list[dict[str, float]]]) -> list[str]:
    """A markdown table of one scenario, and how our default compares."""
    lines = [
        f"### {scenario}: {SCENARIOS[scenario].title}",
        "",
        "| balancer | p50, s | p99, s | answered, % | goodput, 1/s |",
        "|---|---|---|---|---|",
    ]
    for balancer, runs in results.items():
        cells = []
        for figure, digits in (("p50", 2), ("p99", 2), ("success", 2), ("goodput", 2)):
            mean, low, high = interval([run[figure] for run in runs])
            cells.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        name = f"**{balancer}**" if balancer == DEFAULT else balancer
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for other in OTHERS:
        if DEFAULT in results and other in results:
            words = ", ".join(
                f"{figure} {verdict(*pair(results, other, figure), lower=lower)}"
                for figure, lower in LOWER_IS_BETTER.items()
            )
            lines.append(f"{DEFAULT} against {other}: {words}")
    return [*lines, ""]


def pair(
    results: dict[str, list[dict[str, float]]], other: str, figure: str
) -> tuple[list[float], list[float]]:
    return [run[figure] for run in results[DEFAULT]], [run[figure] for run in results[other]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tail latency of balancers over simulated faults.")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=2000, help="in each run")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--balancers", nargs="+", choices=BALANCERS, default=list(BALANCERS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="3 seeds of 300 requests, one process")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.requests, options.jobs = 3, 300, 1
    jobs = [
        (scenario, balancer, seed, options.requests)
        for scenario in options.scenarios
        for balancer in options.balancers
        for seed in range(options.seeds)
    ]
    if options.jobs == 1:
        measured = list(map(measure, jobs))
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            measured = list(pool.map(measure, jobs, chunksize=5))
    for scenario in options.scenarios:
        results: dict[str, list[dict[str, float]]] = {}
        for (where, balancer, _, _), run in zip(jobs, measured, strict=True):
            if where == scenario:
                results.setdefault(balancer, []).append(run)
        print("\n".join(table(scenario, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
