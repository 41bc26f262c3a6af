"""Who chooses in the simulation: the real Router, and models of other balancers.

The models are written from the documented behaviour and the published source of what they stand for. Each
gets the same number of attempts as the Router, on different backends, without its pauses and its budget.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable

from benchmarks.simulation import Answers, Call, End, NotPlaced, Placed, Simulation, Verdict
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, BackendType, Probe
from uia_lab.domain.errors import BackendFailed, BackendTimeout, InferenceError, StreamInterrupted
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.manager.lifecycle import FIRST_RETRY_S, HEALTHY_INTERVAL_S, PROBE_TIMEOUT_S
from uia_lab.routing.registry import Registered
from uia_lab.routing.retry import pause
from uia_lab.routing.router import Router
from uia_lab.routing.turns import Attempt, Expired, Granted, Outcome, Queued, Turn

INTERVAL_S = 60.0
MODEL = "m"
ERRORS: dict[Verdict, Callable[[], InferenceError]] = {
    Verdict.FAILED: lambda: BackendFailed("failed"),
    Verdict.TIMEOUT: lambda: BackendTimeout("silent"),
    Verdict.BROKEN: lambda: StreamInterrupted("broken"),
}


def backend(number: int) -> Registered:
    """A backend that needs no adapter: routing never touches it."""
    return Registered(
        backend_id=f"b{number}",
        name=f"b{number}",
        type=BackendType.API,
        instance=None,  # type: ignore[arg-type]
        original=None,
        capabilities=BackendCapabilities(supported_tasks={"text-generation"}, supported_models={MODEL}),
        models=frozenset({MODEL}),
        external=False,
        endpoint=None,
        metadata={},
        weight=1.0,
        max_concurrency=None,
        registered_at=0.0,
    )


class Ours:
    """The Router with its breaker, the manager's retry rule and, unless turned off, its health checks.

    Args:
        simulation: Whose backends it serves.
        strategy: Name of the strategy.
        seed: Of the Router's chances.
        probes: Whether health checks run, at the manager's times.
    """

    def __init__(self, simulation: Simulation, strategy: str, seed: int, *, probes: bool = True) -> None:
        self._rng = random.Random(f"ours {seed}")  # noqa: S311 - a simulation
        self.router = Router(strategy, rng=self._rng, queue_size=1000)
        self._simulation = simulation
        self._entries = [backend(number) for number in range(len(simulation.workload.speeds))]
        self._numbers = {entry.backend_id: number for number, entry in enumerate(self._entries)}
        self._tickets: dict[int, Call] = {}
        self._probes: list[tuple[float, int, Probe | None]] = []
        self._delays = [FIRST_RETRY_S / 2] * len(self._entries)
        for number, entry in enumerate(self._entries):
            self.router.register(entry, 0.0)
            if probes:
                heapq.heappush(self._probes, (0.0, number, None))

    def place(self, call: Call, now: float) -> Placed | NotPlaced:
        """Asks the Router as the manager does."""
        if call.extra is None:
            call.extra = InferenceRequest(
                "text-generation",
                MODEL,
                call.session,
                stream=self._simulation.workload.stream,
                routing=RoutingHints(session_id=call.session),
                id=str(call.number),
            )
        tried = frozenset((self._entries[number].backend_id, MODEL) for number in call.tried)
        answer = self.router.begin(call.extra, now, number=len(call.tried) + 1, excluded=tried)
        if isinstance(answer, Granted):
            return self._placed(answer.attempt)
        if isinstance(answer, Queued):
            self._tickets[answer.ticket.number] = call
            return NotPlaced.WAITS
        return NotPlaced.REFUSED

    def ended(self, call: Call, placed: Placed, end: End, now: float) -> Answers:
        """Gives the lease back."""
        usage = Usage(10, call.tokens)
        outcome = (
            Outcome("ok", None, usage, end.first_s)
            if end.verdict is Verdict.OK
            else Outcome("failed", ERRORS[end.verdict](), usage, end.first_s)
        )
        return self._turns(self.router.finish(placed.token, outcome, now))

    def pause(self, call: Call, now: float) -> float | None:
        """The manager's rule: a budget for retries, and a pause before the third attempt."""
        return pause(len(call.tried) + 1, self._rng) if self.router.retries.take(now) else None

    def next_tick(self) -> float | None:
        """The next health check, or what the Router waits for."""
        times = [self._probes[0][0]] if self._probes else []
        at = self.router.next_tick
        if at is not None:
            times.append(at)
        return min(times, default=None)

    def tick(self, now: float) -> Answers:
        """Health checks that are due or answered, then the Router's own tick."""
        turns: list[Turn] = []
        while self._probes and self._probes[0][0] <= now:
            _, number, finding = heapq.heappop(self._probes)
            if finding is not None:
                turns += self.router.probed(self._entries[number], finding, now)
                self._again(number, now)
            else:
                self._check(number, now)
        return self._turns([*turns, *self.router.tick(now)])

    def _check(self, number: int, now: float) -> None:
        entry = self._entries[number]
        quiet = now - entry.stats.last_success >= HEALTHY_INTERVAL_S
        if not quiet and not entry.health.breaker.consecutive:
            self._again(number, now)
            return
        answer = self._simulation.probe(number)
        status = BackendStatus.HEALTHY if answer else BackendStatus.OFFLINE
        seconds = PROBE_TIMEOUT_S if answer is None else answer
        heapq.heappush(self._probes, (now + seconds, number, Probe(status, "probed")))

    def _again(self, number: int, now: float) -> None:
        healthy = self._entries[number].health.status is BackendStatus.HEALTHY
        delay = HEALTHY_INTERVAL_S if healthy else min(self._delays[number] * 2, INTERVAL_S)
        self._delays[number] = FIRST_RETRY_S / 2 if healthy else delay
        heapq.heappush(self._probes, (now + delay * self._rng.uniform(0.8, 1.2), number, None))

    def _placed(self, attempt: Attempt) -> Placed:
        return Placed(self._numbers[attempt.backend.backend_id], attempt)

    def _turns(self, turns: list[Turn]) -> Answers:
        answers: Answers = []
        for turn in turns:
            assert turn.ticket is not None
            call = self._tickets.pop(turn.ticket.number)
            expired = isinstance(turn, Expired)
            answers.append((call, NotPlaced.REFUSED if expired else self._placed(turn.attempt)))
        return answers


class Peer:
    """What the models have in common: they never wait, and retry at once."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.count = len(simulation.workload.speeds)
        self.stream = simulation.workload.stream
        self.rng = random.Random(f"peer {seed}")  # noqa: S311 - a simulation

    def place(self, call: Call, now: float) -> Placed | NotPlaced:
        """The one chosen among those not tried."""
        chosen = self.choose([number for number in range(self.count) if number not in call.tried], now)
        return NotPlaced.REFUSED if chosen is None else Placed(chosen)

    def choose(self, untried: list[int], now: float) -> int | None:
        """One of those, or None; random here."""
        del now
        return self.rng.choice(untried) if untried else None

    def ended(self, call: Call, placed: Placed, end: End, now: float) -> Answers:
        """Learns nothing here."""
        del call, placed, end, now
        return []

    def pause(self, call: Call, now: float) -> float | None:
        """At once."""
        del call, now
        return 0.0

    def next_tick(self) -> float | None:
        """Never."""
        return None

    def tick(self, now: float) -> Answers:
        """Nothing waits."""
        del now
        return []


class TwoChoices(Peer):
    """The less busy of two at random, by requests in flight (Mitzenmacher 2001), and nothing else."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        super().__init__(simulation, seed)
        self.busy = [0] * self.count

    def choose(self, untried: list[int], now: float) -> int | None:
        """Compares two."""
        del now
        two = self.rng.sample(untried, min(2, len(untried)))
        chosen = min(two, key=lambda number: self.busy[number], default=None)
        if chosen is not None:
            self.busy[chosen] += 1
        return chosen

    def ended(self, call: Call, placed: Placed, end: End, now: float) -> Answers:
        """One less in flight."""
        del call, end, now
        self.busy[placed.backend] -= 1
        return []


class LeastConn(Peer):
    """nginx: ``least_conn``, ``max_fails=1 fail_timeout=10s``, ``proxy_next_upstream_tries 3``.

    As in its source: the fewest connections per weight; ties go round by smooth weighted round robin; time
    in whole seconds; a peer that failed is left out for fail_timeout and then gets traffic again; when
    nobody is left every peer counts as live again, but this request ends with an error. A break after the
    first content is no failure of the peer.
    """

    FAIL_TIMEOUT_S = 10
    MAX_FAILS = 1

    def __init__(self, simulation: Simulation, seed: int) -> None:
        super().__init__(simulation, seed)
        self.set_weights([1] * self.count)

    def set_weights(self, weights: list[int]) -> None:
        """Starts afresh with these weights."""
        self.weight = weights
        self.effective = list(weights)
        self.current = [0] * len(weights)
        self.conns = [0] * len(weights)
        self.fails = [0] * len(weights)
        self.accessed = [0] * len(weights)
        self.checked = [0] * len(weights)

    def choose(self, untried: list[int], now: float) -> int | None:
        """ngx_http_upstream_get_least_conn_peer."""
        second = int(now)
        live = [
            peer
            for peer in untried
            if self.fails[peer] < self.MAX_FAILS or second - self.checked[peer] > self.FAIL_TIMEOUT_S
        ]
        if not live:
            self.fails = [0] * self.count
            return None
        best = live[0]
        for peer in live[1:]:
            if self.conns[peer] * self.weight[best] < self.conns[best] * self.weight[peer]:
                best = peer
        least, per = self.conns[best], self.weight[best]
        tied = [peer for peer in live if self.conns[peer] * per == least * self.weight[peer]]
        if len(tied) > 1:
            total = 0
            for peer in tied:
                self.current[peer] += self.effective[peer]
                total += self.effective[peer]
                self.effective[peer] = min(self.weight[peer], self.effective[peer] + 1)
                if self.current[peer] > self.current[best]:
                    best = peer
            self.current[best] -= total
        if second - self.checked[best] > self.FAIL_TIMEOUT_S:
            self.checked[best] = second
        self.conns[best] += 1
        return best

    def ended(self, call: Call, placed: Placed, end: End, now: float) -> Answers:
        """ngx_http_upstream_free_round_robin_peer."""
        del call
        peer = placed.backend
        if end.verdict in {Verdict.FAILED, Verdict.TIMEOUT}:
            self.fails[peer] += 1
            self.accessed[peer] = self.checked[peer] = int(now)
            self.effective[peer] = max(0, self.effective[peer] - self.weight[peer] // self.MAX_FAILS)
        elif self.accessed[peer] < self.checked[peer]:
            self.fails[peer] = 0
        self.conns[peer] -= 1
        return []


class LowestLatency(Peer):
    """LiteLLM: ``latency-based-routing``, buffer 0, ``allowed_fails=3``, ``cooldown_time=5``.

    The lowest mean of the last ten latencies, each divided by the tokens of the answer: times to the first
    token for streams, whole ones otherwise. A backend without a measurement counts as 0. A timeout is kept
    as 1000 s among the whole latencies; other failures leave no mark there. More than three failures in a
    minute cool a backend down for five seconds. Its own retry may return to a backend that has just
    failed; here, like everybody, it goes elsewhere.
    """

    SIZE = 10
    PENALTY_S = 1000.0
    ALLOWED_FAILS = 3
    COOLDOWN_S = 5.0

    def __init__(self, simulation: Simulation, seed: int) -> None:
        super().__init__(simulation, seed)
        self.latency = [deque[float](maxlen=self.SIZE) for _ in range(self.count)]
        self.first = [deque[float](maxlen=self.SIZE) for _ in range(self.count)]
        self.fails = [(0, 0)] * self.count
        self.cool_until = [0.0] * self.count

    def choose(self, untried: list[int], now: float) -> int | None:
        """The lowest mean, a tie at random."""
        means: dict[int, float] = {}
        for number in untried:
            if now < self.cool_until[number]:
                continue
            kept = self.first[number] if self.stream and self.first[number] else self.latency[number]
            means[number] = sum(kept) / len(kept) if kept else 0.0
        least = min(means.values(), default=0.0)
        lowest = [number for number, mean in means.items() if mean <= least]
        return self.rng.choice(lowest) if lowest else None

    def ended(self, call: Call, placed: Placed, end: End, now: float) -> Answers:
        """Keeps a latency, or counts a failure."""
        number = placed.backend
        if end.verdict is Verdict.OK:
            self.latency[number].append(end.elapsed / call.tokens)
            if self.stream and end.first_s is not None:
                self.first[number].append(end.first_s / call.tokens)
            return []
        if end.verdict is Verdict.TIMEOUT:
            self.latency[number].append(self.PENALTY_S)
        minute, fails = self.fails[number]
        fails = fails + 1 if minute == int(now // 60) else 1
        self.fails[number] = (int(now // 60), fails)
        if fails > self.ALLOWED_FAILS:
            self.cool_until[number] = now + self.COOLDOWN_S
        return []
