"""Microseconds of one routing decision, ``begin`` and ``finish`` together, for each strategy.

Two fleets, 3 and 1,000 backends. The floor, measured in the same run: a pair of empty calls, and
``random.choice`` over a list as long as the fleet. Rounds of all of them take turns; medians count.
Goals: best_performance costs under 20 us on an idle core, and with 1,000 backends less than twice what it
costs with 3. Run it as ``python -m benchmarks.routing_decision``; ``--profile NAME`` shows where time goes.
"""

import argparse
import cProfile
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.balancers import MODEL, backend
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.routing.router import Router
from uia_lab.routing.strategies import BUILT_IN
from uia_lab.routing.turns import Granted, Outcome

FLEETS = (3, 1000)
ROUNDS = 15
GOAL_US = 20.0
GOAL_RATIO = 2.0
WARM_UP = 2000
DEFAULT = "best_performance"

Turn = Callable[[int], None]


def nothing() -> None:
    """The floor."""


def floor(_: int) -> Turn:
    def turn(times: int) -> None:
        for _ in range(times):
            nothing()
            nothing()

    return turn


def choice(fleet: int) -> Turn:
    rng = random.Random(1)  # noqa: S311 - a measurement
    backends = list(range(fleet))

    def turn(times: int) -> None:
        for _ in range(times):
            rng.choice(backends)

    return turn


def decision(strategy: str) -> Callable[[int], Turn]:
    def make(fleet: int) -> Turn:
        rng = random.Random(1)  # noqa: S311 - a measurement
        router = Router(strategy, rng=rng)
        for number in range(fleet):
            router.register(backend(number), 0.0)
        requests = [
            InferenceRequest("text-generation", MODEL, "x", routing=RoutingHints(session_id=f"s{number}"))
            for number in range(64)
        ]
        outcome = Outcome("ok", None, Usage(10, 100), 0.1)
        now = 0.0

        def turn(times: int) -> None:
            nonlocal now
            for number in range(times):
                now += 0.001
                granted = router.begin(requests[number % 64], now)
                assert isinstance(granted, Granted)
                router.finish(granted.attempt, outcome, now + 0.0005)

        # Every backend of the small fleet and most of the large one have a latency then.
        turn(WARM_UP if strategy == DEFAULT else 2 * 64)
        return turn

    return make


SUBJECTS: dict[str, Callable[[int], Turn]] = {
    "two empty calls (floor)": floor,
    "random.choice (floor)": choice,
    **{name: decision(name) for name in sorted(BUILT_IN, key=lambda name: name != DEFAULT)},
}


def clock(turn: Turn, times: int) -> float:
    begin = time.perf_counter()
    turn(times)
    return (time.perf_counter() - begin) / times * 1e6


def fitting(turn: Turn, seconds: float) -> int:
    """How many make a round of about that length."""
    return max(20, int(seconds / (clock(turn, 20) * 1e-6)))


def profile(strategy: str) -> None:
    for fleet in FLEETS:
        turn = SUBJECTS[strategy](fleet)
        with cProfile.Profile() as profiler:
            turn(20000 if strategy == DEFAULT else 500)
        print(f"{strategy}, {fleet} backends")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cost of a routing decision.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=0.05, help="of one round of one subject")
    parser.add_argument("--profile", choices=[name for name in SUBJECTS if "(" not in name])
    options = parser.parse_args(arguments)
    if options.profile:
        profile(options.profile)
        return 0
    turns = {(name, fleet): make(fleet) for name, make in SUBJECTS.items() for fleet in FLEETS}
    times = {subject: fitting(turn, options.seconds) for subject, turn in turns.items()}
    figures: dict[tuple[str, int], list[float]] = {subject: [] for subject in turns}
    for _ in range(options.rounds):
        for subject, turn in turns.items():
            figures[subject].append(clock(turn, times[subject]))
    few, many = FLEETS
    print(f"| strategy | us, {few} backends | us, {many} backends | ratio | us at best, {few} and {many} |")
    print("|---|---|---|---|---|")
    for name in SUBJECTS:
        small, large = (statistics.median(figures[name, fleet]) for fleet in FLEETS)
        best = " and ".join(f"{min(figures[name, fleet]):.2f}" for fleet in FLEETS)
        print(f"| {name} | {small:.2f} | {large:.2f} | {large / small:.2f} | {best} |")
    ratio = statistics.median(figures[DEFAULT, many]) / statistics.median(figures[DEFAULT, few])
    least = max(min(figures[DEFAULT, fleet]) for fleet in FLEETS)
    met = ratio < GOAL_RATIO and least < GOAL_US
    print(f"\n{DEFAULT}: ratio {ratio:.2f} (goal under {GOAL_RATIO:.0f}), at best {least:.1f} us", end=" ")
    print(f"(goal under {GOAL_US:.0f} us): {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
