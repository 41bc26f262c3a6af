"""Backends behind a balancer, simulated event by event on a virtual clock.

A backend answers ``slots`` requests at a time and lets the others wait in order. That is how model servers
with a fixed number of parallel sequences (llama.cpp, Ollama, vLLM) queue, and the waiting shows where a
balancer can see it: in the time to the first content. Nobody is told the number of slots or the speeds.

A request has an amount of work, one second on average at speed 1. It can be retried elsewhere until its
first content, up to ``ATTEMPTS`` backends in all; afterwards a break ends it, whoever balances.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias

from uia_lab.routing.virtual_time import VirtualTime

ATTEMPTS = 3
FIRST_CHUNK_S = 30.0
FIRST_CONTENT_S = 0.1
REFUSAL_S = 0.001
FAST_FAILURE_S = 0.005
TOKENS_PER_SECOND = 100.0
SIGMA = 0.8


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one backend for a while.

    Args:
        backend: Its number.
        begin: When it begins, seconds.
        end: When it is over.
        kind: ``slow`` (``amount`` times), ``fails`` (that share, at once), ``refuses`` or ``silent``.
        amount: How much.
    """

    backend: int
    begin: float
    end: float
    kind: str
    amount: float = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What comes in, and who is there.

    Args:
        speeds: Of each backend; 1 answers a mean request in one second.
        rate: Requests per second (Poisson).
        requests: How many.
        faults: What goes wrong.
        slots: Requests a backend answers at a time.
        work: ``lognormal``, ``exponential`` or ``constant``, always 1 on average.
        stream: Whether requests are streamed; balancers measure the first content then.
        sessions: Distinct sessions the requests belong to.
    """

    speeds: tuple[float, ...]
    rate: float
    requests: int
    faults: tuple[Fault, ...] = ()
    slots: int = 4
    work: str = "lognormal"
    stream: bool = True
    sessions: int = 200


@dataclass(slots=True, eq=False)
class Call:
    """One request.

    Attributes:
        tried: Numbers of the backends tried.
        ended: ``ok``, ``failed`` or ``refused`` once it is over; empty before.
    """

    number: int
    born: float
    work: float
    session: str
    tried: tuple[int, ...] = ()
    ended: str = ""
    ended_at: float = math.nan
    extra: Any = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return max(1, round(self.work * TOKENS_PER_SECOND))


class Verdict(Enum):
    """How an attempt ended; BROKEN is a break after the first content."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class End:
    """What a balancer learns of an attempt."""

    verdict: Verdict
    elapsed: float
    first_s: float | None


@dataclass(frozen=True, slots=True)
class Placed:
    """A backend was chosen; ``token`` is the balancer's own."""

    backend: int
    token: Any = None


class NotPlaced(Enum):
    """WAITS: the balancer answers later. REFUSED: nobody can serve."""

    WAITS = "waits"
    REFUSED = "refused"


Answers: TypeAlias = list[tuple[Call, Placed | NotPlaced]]


class Balancer(Protocol):
    """What chooses."""

    def place(self, call: Call, now: float) -> Placed | NotPlaced:
        """A backend for the next attempt."""

    def ended(self, call: Call, placed: Placed, end: End, now: float) -> Answers:
        """Takes in an end; answers to those who waited."""

    def pause(self, call: Call, now: float) -> float | None:
        """Seconds before the next attempt, or None to give up."""

    def next_tick(self) -> float | None:
        """When ``tick`` has something to do."""

    def tick(self, now: float) -> Answers:
        """Lets time pass."""


@dataclass(slots=True, eq=False)
class Lease:
    """One attempt at one backend."""

    call: Call
    placed: Placed
    begun: float
    first_at: float | None = None
    over: bool = False


@dataclass(slots=True)
class Server:
    """One backend: who is being answered and who waits there."""

    running: set[Lease] = field(default_factory=set)
    waiting: deque[Lease] = field(default_factory=deque)
    lost: set[Lease] = field(default_factory=set)


class Simulation:
    """One run.

    Args:
        workload: What comes in.
        seed: Of arrivals, work and faults: the same for every balancer.
        make: Builds the balancer; gets the simulation, for ``probe``.
    """

    def __init__(self, workload: Workload, seed: int, make: "Callable[[Simulation], Balancer]") -> None:
        self.workload = workload
        self._time = VirtualTime()
        self.calls: list[Call] = []
        self._arrivals = random.Random(f"arrivals {seed}")  # noqa: S311 - a simulation
        self._chance = random.Random(f"faults {seed}")  # noqa: S311 - a simulation
        self._servers = [Server() for _ in workload.speeds]
        self._faults = [[f for f in workload.faults if f.backend == i] for i in range(len(workload.speeds))]
        self._patience: deque[tuple[float, Lease]] = deque()
        self._open = workload.requests
        self.balancer = make(self)

    @property
    def now(self) -> float:
        """The present, seconds."""
        return self._time.now

    def run(self) -> list[Call]:
        """Every call, each of them ended."""
        for fault in self.workload.faults:
            if fault.kind in {"refuses", "silent"}:
                self._time.at(fault.begin, self._dies, fault)
        self._time.at(self._arrivals.expovariate(self.workload.rate), self._arrives, None)
        while self._open:
            self._step()
        return self.calls

    def probe(self, backend: int) -> float | None:
        """Seconds until a health check sent now is answered; 0 for a refusal, None for silence."""
        fault = self._down(backend)
        if fault is None:
            return REFUSAL_S
        return 0.0 if fault.kind == "refuses" else None

    def _wake(self) -> float:
        at = self.balancer.next_tick()
        return math.inf if at is None else at

    def _step(self) -> None:
        event = self._time.following
        late = self._patience[0][0] if self._patience else math.inf
        wake = self._wake()
        if wake <= event and wake <= late:
            self._time.now = max(self.now, wake)
            self._hand_out(self.balancer.tick(self.now))
        elif late < event:
            self._time.now, lease = self._patience.popleft()
            if not lease.over and (lease.first_at is None or lease.first_at > self.now):
                self._over(lease, Verdict.TIMEOUT)
        else:
            self._time.step()

    def _arrives(self, _: None) -> None:
        rng, number = self._arrivals, len(self.calls)
        match self.workload.work:
            case "exponential":
                work = rng.expovariate(1.0)
            case "constant":
                work = 1.0
            case _:
                work = rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        call = Call(number, self.now, work, f"s{rng.randrange(self.workload.sessions)}")
        self.calls.append(call)
        if number + 1 < self.workload.requests:
            self._time.at(self.now + rng.expovariate(self.workload.rate), self._arrives, None)
        self._place(call)

    def _place(self, call: Call) -> None:
        self._answered(call, self.balancer.place(call, self.now))

    def _hand_out(self, answers: Answers) -> None:
        for call, answer in answers:
            self._answered(call, answer)

    def _answered(self, call: Call, answer: Placed | NotPlaced) -> None:
        if isinstance(answer, Placed):
            self._send(call, answer)
        elif answer is NotPlaced.REFUSED:
            self._close(call, "failed" if call.tried else "refused")

    def _send(self, call: Call, placed: Placed) -> None:
        lease = Lease(call, placed, self.now)
        call.tried += (placed.backend,)
        server = self._servers[placed.backend]
        down = self._down(placed.backend)
        failing = self._fault(placed.backend, "fails")
        if down is not None and down.kind == "refuses":
            self._time.at(self.now + REFUSAL_S, self._fails, lease)
            return
        if failing is not None and self._chance.random() < failing.amount:
            self._time.at(self.now + FAST_FAILURE_S, self._fails, lease)
            return
        self._patience.append((self.now + FIRST_CHUNK_S, lease))
        if down is not None:
            server.lost.add(lease)
        elif len(server.running) < self.workload.slots:
            self._start(server, lease)
        else:
            server.waiting.append(lease)

    def _start(self, server: Server, lease: Lease) -> None:
        server.running.add(lease)
        slow = self._fault(lease.placed.backend, "slow")
        speed = self.workload.speeds[lease.placed.backend] / (slow.amount if slow else 1.0)
        work = lease.call.work
        lease.first_at = self.now + (min(FIRST_CONTENT_S, work) if self.workload.stream else work) / speed
        self._time.at(self.now + work / speed, self._finishes, lease)

    def _finishes(self, lease: Lease) -> None:
        if not lease.over and lease in self._servers[lease.placed.backend].running:
            self._over(lease, Verdict.OK)

    def _fails(self, lease: Lease) -> None:
        if not lease.over:
            self._over(lease, Verdict.FAILED)

    def _dies(self, fault: Fault) -> None:
        """The process is gone: a refusal breaks connections, silence leaves them hanging."""
        server = self._servers[fault.backend]
        hit = sorted([*server.running, *server.waiting], key=lambda lease: lease.call.number)
        server.running.clear()
        server.waiting.clear()
        for lease in hit:
            started = lease.first_at is not None and lease.first_at <= self.now
            if fault.kind == "refuses":
                self._over(lease, Verdict.BROKEN if started else Verdict.FAILED)
            elif started:
                self._time.at(self.now + 2 * FIRST_CHUNK_S, self._breaks, lease)
            else:
                lease.first_at = None
                server.lost.add(lease)

    def _breaks(self, lease: Lease) -> None:
        if not lease.over:
            self._over(lease, Verdict.BROKEN)

    def _over(self, lease: Lease, verdict: Verdict) -> None:
        lease.over = True
        call, server = lease.call, self._servers[lease.placed.backend]
        server.running.discard(lease)
        server.lost.discard(lease)
        while server.waiting and len(server.running) < self.workload.slots:
            following = server.waiting.popleft()
            if not following.over:
                self._start(server, following)
        first = None if lease.first_at is None or lease.first_at > self.now else lease.first_at - lease.begun
        end = End(verdict, self.now - lease.begun, first)
        self._hand_out(self.balancer.ended(call, lease.placed, end, self.now))
        if verdict is Verdict.OK:
            self._close(call, "ok")
        elif verdict is Verdict.BROKEN or len(call.tried) >= ATTEMPTS:
            self._close(call, "failed")
        else:
            seconds = self.balancer.pause(call, self.now)
            if seconds is None:
                self._close(call, "failed")
            else:
                self._time.at(self.now + seconds, self._place, call)

    def _close(self, call: Call, ended: str) -> None:
        assert not call.ended, f"call {call.number} ended twice"
        call.ended, call.ended_at = ended, self.now
        self._open -= 1

    def _fault(self, backend: int, kind: str) -> Fault | None:
        for fault in self._faults[backend]:
            if fault.kind == kind and fault.begin <= self.now < fault.end:
                return fault
        return None

    def _down(self, backend: int) -> Fault | None:
        return self._fault(backend, "refuses") or self._fault(backend, "silent")
