"""How one backend is chosen among those that can serve and have a free slot."""

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from statistics import median
from typing import Protocol, TypeAlias

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.eligibility import Tier
from uia_lab.routing.registry import Registered

ENTRY_POINTS = "uia_lab.strategies"
DEFAULT_LATENCY_S = 1.0
LEAST_LATENCY_S = 1e-6
COMPARE_ALL = 16
COMPARED = 4
DISTRUST = 2.0
ALIKE = 2.0
TIE = 0.01
SAMPLE_TRIES = 8
EXPLORE = 0.02
UNSEEN_S = 30.0
OVERLOAD = 1.25
OVERLOAD_LEAST = 10
PREFIX_CHARACTERS = 1024
LOAD_PRICE = 1e-9
DEAREST = 1e9

Tried: TypeAlias = frozenset[tuple[str, str | None]]


class Pool:
    """The backends of one tier, seen for one request.

    Args:
        tier: Routable backends that can serve it, and the model they are asked for.
        excluded: Ids and models already tried.
        rng: Source of random numbers.
        now: Time, seconds.
    """

    def __init__(self, tier: Tier, excluded: Tried, rng: random.Random, now: float) -> None:
        self.members = tier.members
        self.model = tier.model
        self.excluded = excluded
        self.rng = rng
        self.now = now

    def open(self, entry: Registered) -> bool:
        """Whether the backend has a free slot and was not tried before."""
        return entry.free and (not self.excluded or (entry.backend_id, self.model) not in self.excluded)

    def free(self) -> list[Registered]:
        """All with a free slot, in stable order; costs a walk over all members."""
        return [entry for entry in self.members if self.open(entry)]

    def sample(self, count: int) -> list[Registered]:
        """Up to ``count`` distinct free ones at random, without walking over a large pool."""
        if len(self.members) <= COMPARE_ALL:
            return self.free()
        found: dict[str, Registered] = {}
        for _ in range(SAMPLE_TRIES):
            entry = self.members[int(self.rng.random() * len(self.members))]
            if self.open(entry):
                found[entry.backend_id] = entry
                if len(found) == count:
                    return list(found.values())
        free = self.free()
        return free if len(free) <= count else self.rng.sample(free, count)


class Strategy(Protocol):
    """One way to choose; an installed one is found by its entry point in ``uia_lab.strategies``."""

    name: str

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """Scores of the backends it would compare, the lowest best; must change nothing."""

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Learns that the winner got the turn."""


class RoundRobin:
    """Smooth weighted round robin (nginx), keyed on the id, so that a status change restarts nothing."""

    name = "round_robin"

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """The negated credit each would have after this turn's pay."""
        del request
        return [
            (-(self._credit.get(entry.backend_id, 0.0) + entry.share(pool.now)), entry)
            for entry in pool.free()
        ]

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Pays every candidate its weight and takes the sum from the winner."""
        total = 0.0
        for entry in pool.free():
            pay = entry.share(pool.now)
            self._credit[entry.backend_id] = self._credit.get(entry.backend_id, 0.0) + pay
            total += pay
        self._credit[winner.backend_id] -= total
        if len(self._credit) > 2 * len(pool.members) + 64:
            live = {entry.backend_id for entry in pool.members}
            self._credit = {name: credit for name, credit in self._credit.items() if name in live}


class LeastLoaded:
    """The fewest requests in flight per weight."""

    name = "least_loaded"

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """In-flight requests per weight."""
        del request
        return [(entry.in_flight / entry.share(pool.now), entry) for entry in pool.free()]

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Keeps nothing: the leases are its memory."""


class BestPerformance:
    """The lowest ``(inflight + 1) * latency / weight / success``, among all or, of many, of some at random.

    One router sees every lease, so comparing all makes no stampede, as it would with several routers;
    beyond COMPARE_ALL a few choices are nearly as good and cost no more (Mitzenmacher 2001). Two would do for
    equal backends; unequal ones want COMPARED.

    Latency is the estimate per model and task: time to the first token for streams, time per output token
    otherwise. Those within ALIKE times the best count as equal and only break ties: what they differ by
    is mostly the luck of the last answers, and following it would put load on load. A latency not seen
    lately decays to the median of the peers; one never seen counts as the best of them, so that a new
    backend is tried at once and not after luck.
    """

    name = "best_performance"

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """The scores of COMPARED at random, of all where there are few."""
        some = pool.sample(COMPARED)
        if pool.rng.random() < EXPLORE:
            some = self._unseen(some, pool, request) or some
        estimates = [entry.stats.estimate(pool.model, request.task, stream=request.stream) for entry in some]
        rest = median([known.value for known in estimates if known] or [DEFAULT_LATENCY_S])
        read = [max(known.read(pool.now, rest), LEAST_LATENCY_S) if known else None for known in estimates]
        best = min((latency for latency in read if latency), default=DEFAULT_LATENCY_S)
        scored = []
        for entry, latency in zip(some, (item or best for item in read), strict=True):
            effective = (best if latency < ALIKE * best else latency) * (1 + TIE * latency / best)
            success = entry.stats.success(pool.now)
            breaker = entry.health.breaker
            if breaker.consecutive and not breaker.half_open:
                # A backend that fails fast is always idle: load alone would send it everything.
                success /= DISTRUST**breaker.consecutive
            scored.append(((entry.in_flight + 1) * effective / entry.share(pool.now) / success, entry))
        return scored

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Keeps nothing: the statistics are its memory."""

    def _unseen(self, some: list[Registered], pool: Pool, request: InferenceRequest) -> list[Registered]:
        """The one unseen for longest, if that is long; idle, and free of charge and consequence."""
        longest: list[Registered] = []
        since = pool.now - UNSEEN_S
        for entry in some:
            known = entry.stats.estimate(pool.model, request.task, stream=request.stream)
            seen = -math.inf if known is None else known.at
            if seen < since and not (entry.in_flight or entry.external or entry.capabilities.side_effects):
                longest, since = [entry], seen
        return longest


class WeightedRandom:
    """At random, in proportion to the weights (Efraimidis and Spirakis 2006)."""

    name = "weighted_random"

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """Exponential times with the weights as rates: the first to come wins."""
        del request
        return [(pool.rng.expovariate(entry.share(pool.now)), entry) for entry in pool.free()]

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Keeps nothing."""


class PrefixAffinity:
    """Requests of one session, or with one beginning, go to one backend, whose cache knows it.

    Rendezvous hashing (Thaler and Ravishankar 1998), so that a backend that comes or goes moves only its
    own share. A backend with much more in flight than the others gives up its turn: affinity yields to load.
    """

    name = "prefix_affinity"

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """The hash, from 0 to 1; above 1 by its load where a backend is overloaded."""
        free = pool.free()
        if not free:
            return []
        average = sum(entry.in_flight for entry in free) / len(free)
        key = f"{pool.model}\0{request.routing.session_id or _prefix(request)}".encode(errors="replace")
        scored = []
        for entry in free:
            load = entry.in_flight / entry.share(pool.now)
            if load > OVERLOAD * average and load - average > OVERLOAD_LEAST:
                scored.append((1.0 + load, entry))
                continue
            digest = hashlib.blake2b(
                entry.backend_id.encode(), key=hashlib.sha256(key).digest(), digest_size=8
            )
            scored.append((int.from_bytes(digest.digest()) / 2**64, entry))
        return scored

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Keeps nothing: the hash is its memory."""


class Cost:
    """The cheapest; among equally cheap ones the least loaded.

    A backend without a price is free of charge on this machine and the dearest beyond it.
    """

    name = "cost"

    def compare(self, pool: Pool, request: InferenceRequest) -> list[tuple[float, Registered]]:
        """Price of a million tokens in and a million out, and a little for each request in flight."""
        del request
        return [(_price(entry) + LOAD_PRICE * entry.in_flight / entry.weight, entry) for entry in pool.free()]

    def chosen(self, winner: Registered, pool: Pool) -> None:
        """Keeps nothing: prices are stated."""


def _prefix(request: InferenceRequest) -> str:
    """The beginning of a prompt: 256 tokens, at about four characters each."""
    if request.messages is None:
        return str(request.inputs)[:PREFIX_CHARACTERS]
    text = ""
    for message in request.messages:
        text += f"{message.get('role')}:{message.get('content')}\n"
        if len(text) >= PREFIX_CHARACTERS:
            break
    return text[:PREFIX_CHARACTERS]


def _price(entry: Registered) -> float:
    price = entry.capabilities.price
    if price is None:
        return DEAREST if entry.external else 0.0
    return sum(price.values())


BUILT_IN: Mapping[str, Callable[[], Strategy]] = {
    kind.name: kind
    for kind in (RoundRobin, LeastLoaded, BestPerformance, WeightedRandom, PrefixAffinity, Cost)
}


@cache
def _installed() -> dict[str, Callable[[], Strategy]]:
    return {point.name: point.load() for point in entry_points(group=ENTRY_POINTS)}


def _known() -> dict[str, Callable[[], Strategy]]:
    return {**_installed(), **BUILT_IN}


def known_strategies() -> list[str]:
    """Names of the strategies there are, in order."""
    return sorted(_known())


def make_strategy(name: str) -> Strategy:
    """A fresh strategy of that name.

    Raises:
        BadRequest: Unknown; the message lists the known ones.
    """
    known = _known()
    if name not in known:
        raise BadRequest(f"unknown strategy {name!r}.{suggestion(str(name), known)}", param="strategy")
    return known[name]()


def pick(scored: Sequence[tuple[float, Registered]], rng: random.Random) -> Registered:
    """The lowest score; a tie goes to one of the tied at random."""
    best = min(score for score, _ in scored)
    tied = [entry for score, entry in scored if score == best]
    return tied[0] if len(tied) == 1 else tied[int(rng.random() * len(tied))]
