"""The router: a synchronous state machine over registry, eligibility, strategy, leases, health and queue."""

import random
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from uia_lab.domain.backends import BackendStatus, Probe
from uia_lab.domain.errors import QueueFull
from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.decision import Candidate, Decision
from uia_lab.routing.eligibility import Demand, Eligibility, Eligible
from uia_lab.routing.health import OutcomeClass, classify
from uia_lab.routing.queues import Queue, Ticket
from uia_lab.routing.registry import Registered, Registry
from uia_lab.routing.retry import RetryBudget
from uia_lab.routing.strategies import Pool, Tried, make_strategy, pick
from uia_lab.routing.turns import (
    Attempt,
    Expired,
    Granted,
    Outcome,
    Queued,
    Refused,
    Transition,
    Turn,
)

TRANSITIONS = 256
JITTER = 0.2
COMPARED = 8


class Router:
    """Decides who serves. Every method takes the time; nothing blocks, nothing waits.

    Args:
        strategy: Name of the strategy.
        rng: Source of random numbers.
        external_policy: ``never``, ``named`` or ``any``.
        default_models: Model of a request that names none, by task.
        queue_size: Requests that may wait for one (task, model).
        queue_timeout: Seconds a request may wait.
    """

    def __init__(
        self,
        strategy: str = "best_performance",
        *,
        rng: random.Random,
        external_policy: str = "named",
        default_models: Mapping[str, str] | None = None,
        queue_size: int = 100,
        queue_timeout: float = 30.0,
    ) -> None:
        self.registry = Registry()
        self.eligibility = Eligibility(self.registry, external_policy, default_models)
        self.strategy = make_strategy(strategy)
        self.queue = Queue(queue_size)
        self.queue_timeout = queue_timeout
        self.retries = RetryBudget()
        self.transitions: deque[Transition] = deque(maxlen=TRANSITIONS)
        self._rng = rng
        self._closed: dict[str, Registered] = {}
        self._shown: dict[str, tuple[BackendStatus, bool]] = {}

    def register(self, entry: Registered, now: float) -> Registered | None:
        """Adds a backend; one of the same id is replaced and returned.

        Raises:
            BadRequest: A bad field; nothing has changed then.
        """
        old = self.registry.add(entry)
        self._forget(entry.backend_id)
        self.refresh(entry, now)
        return old

    def unregister(self, backend_id: str, now: float) -> tuple[Registered | None, list[Turn]]:
        """Takes a backend out; those who waited only for it are told."""
        entry = self.registry.remove(backend_id)
        self._forget(backend_id)
        return entry, self._serve(now)

    def set_alias(self, name: str, targets: Sequence[str]) -> None:
        """Defines or replaces a fallback chain.

        Raises:
            BadRequest: A bad name or target.
        """
        self.eligibility.aliases.set(name, targets)
        self.registry.version += 1

    def delete_alias(self, name: str) -> bool:
        """Forgets a fallback chain; False if there was none."""
        self.registry.version += 1
        return self.eligibility.aliases.delete(name)

    def set_enabled(self, entry: Registered, now: float, *, enabled: bool) -> list[Turn]:
        """Opens a backend for new requests, or drains it."""
        if entry.enabled != enabled:
            entry.enabled = enabled
            self.registry.version += 1
        return self._serve(now)

    def set_weight(self, entry: Registered, weight: float) -> list[Turn]:
        """Changes a backend's share; nobody is served by that alone."""
        entry.weight = float(weight)
        return []

    def set_limit(self, entry: Registered, limit: int | None, now: float) -> list[Turn]:
        """Changes how many requests a backend works on at once; those that wait may be served by that."""
        entry.max_concurrency = limit
        return self._serve(now)

    def begin(
        self,
        request: InferenceRequest,
        now: float,
        *,
        number: int = 1,
        excluded: Tried = frozenset(),
    ) -> Granted | Queued | Refused:
        """Leases a backend for an attempt, or lets the request wait, or says why not.

        Args:
            request: The request.
            now: Time, seconds.
            number: 1 for the first attempt.
            excluded: Ids and models already tried.
        """
        if self._closed:
            self._let_time_pass(now)
        if number == 1:
            self.retries.requested(now)
        demand = self.eligibility.demand(request)
        if request.model is None and demand.model is not None:
            request = msgspec.structs.replace(request, model=demand.model)
        eligible = self.eligibility.find(demand)
        attempt = self._lease(request, eligible, now, number, excluded)
        if attempt is not None:
            return Granted(attempt)
        if not self._may_wait(eligible, excluded, now):
            return Refused(self.eligibility.refusal(demand))
        if self.queue.full(demand):
            waiting = self.queue.counts().get((demand.task, demand.model), 0)
            return Refused(
                QueueFull(
                    f"every backend for {demand.model or demand.task} is busy and {waiting} requests "
                    "wait already",
                    retry_after=1.0,
                )
            )
        ticket = Ticket(request, demand, number, excluded, now, now + self.queue_timeout)
        self.queue.add(ticket)
        return Queued(ticket)

    def finish(self, attempt: Attempt, outcome: Outcome, now: float) -> list[Turn]:
        """Gives a lease back, learns from how it ended, and serves those who wait.

        Returns:
            Tickets that got a backend now.
        """
        if attempt.ended:
            return []
        attempt.ended = True
        entry, request = attempt.backend, attempt.request
        entry.in_flight -= 1
        if attempt.trial:
            entry.health.breaker.trial = False
        entry.stats.end(attempt.figures, outcome.ending)
        elapsed = now - attempt.started_at
        if outcome.ending == "ok":
            entry.stats.succeeded(
                attempt.figures,
                model=request.model,
                task=request.task,
                stream=request.stream,
                latency=elapsed,
                first_token=outcome.first_token_s,
                usage=outcome.usage,
                whole=outcome.whole,
                now=now,
            )
            entry.health.succeeded(now, attempt.started_at)
        else:
            self._learn(entry, attempt, outcome, elapsed, now)
        if self.registry.get(entry.backend_id) is entry:
            self.refresh(entry, now)
        return self._serve(now)

    def give_back(self, attempt: Attempt, now: float) -> list[Turn]:
        """Takes back a lease that nobody came for, as if it had never been given.

        Returns:
            Tickets that got the backend in its place.
        """
        if attempt.ended:
            return []
        attempt.ended = True
        attempt.backend.in_flight -= 1
        if attempt.trial:
            attempt.backend.health.breaker.trial = False
        attempt.backend.stats.undo(attempt.figures)
        return self._serve(now)

    def leave(self, ticket: Ticket) -> None:
        """Takes a waiting request out; nothing happens if it is out already."""
        self.queue.remove(ticket)

    def tick(self, now: float) -> list[Turn]:
        """Lets time pass: cool-downs end, tickets expire, free slots are served."""
        self._let_time_pass(now)
        expired: list[Turn] = [
            Expired(
                ticket,
                QueueFull(f"waited {now - ticket.since:.1f} s for a free backend", retry_after=1.0),
            )
            for ticket in self.queue.expired(now)
        ]
        return expired + self._serve(now)

    @property
    def next_tick(self) -> float | None:
        """When ``tick`` has something to do; None while nothing waits for time."""
        if not self._closed and not len(self.queue):
            return None
        times = [self.queue.next_expiry()]
        times += [
            max(entry.health.breaker.opened_until, entry.health.paused_until)
            for entry in self._closed.values()
        ]
        return min((time for time in times if time is not None), default=None)

    def probed(self, entry: Registered, probe: Probe, now: float) -> list[Turn]:
        """Takes in what a probe found."""
        entry.health.probed(probe, now)
        if probe.capabilities is not None and probe.capabilities != entry.capabilities:
            entry.capabilities = probe.capabilities
            self.registry.version += 1
        if probe.models is not None and probe.models != entry.models:
            entry.models = probe.models
            self.registry.version += 1
        self.refresh(entry, now)
        return self._serve(now)

    def refresh(self, entry: Registered, now: float) -> None:
        """Recomputes whether a backend is routable; a change drops the cached lists and is remembered."""
        health = entry.health
        routable = health.routable(now)
        if health.returns_at(now) is None:
            self._closed.pop(entry.backend_id, None)
        elif self.registry.get(entry.backend_id) is entry:
            self._closed[entry.backend_id] = entry
        if routable != entry.routable:
            entry.routable = routable
            self.registry.version += 1
        was, was_routable = self._shown.get(entry.backend_id, (BackendStatus.UNKNOWN, True))
        if (was, was_routable) != (health.status, routable):
            self._shown[entry.backend_id] = (health.status, routable)
            self.transitions.append(
                Transition(entry.backend_id, was.value, health.status.value, routable, health.reason, now)
            )

    def choose(self, request: InferenceRequest, now: float) -> Registered | None:
        """The backend that would be leased, without a lease; the strategy's turn advances."""
        demand = self.eligibility.demand(request)
        choice = self._choose(request, self.eligibility.find(demand), now, frozenset())
        return choice[0] if choice else None

    def explain(self, request: InferenceRequest, now: float) -> Decision:
        """What ``begin`` would do and why, with every registered backend; nothing changes."""
        demand = self.eligibility.demand(request)
        rng = random.Random()  # noqa: S311 - a copy of the strategy's source, no secret
        rng.setstate(self._rng.getstate())
        scores: dict[str, float] = {}
        reached: set[str] = set()
        winner: str | None = None
        for tier in self.eligibility.find(demand).tiers:
            reached.update(entry.backend_id for entry in tier.members)
            scored = self.strategy.compare(Pool(tier, frozenset(), rng, now), request)
            scores.update({entry.backend_id: score for score, entry in scored})
            if scored and winner is None:
                winner = pick(scored, rng).backend_id
        candidates = []
        for entry in self.registry:
            kept = entry.backend_id in reached
            if not kept:
                reason = self.eligibility.why_not(entry, demand) or ""
            elif not entry.routable:
                reason = f"let in all the same, since too many are out: {entry.health.reason}"
            else:
                reason = "" if entry.free else f"busy: {entry.in_flight} in flight"
            candidates.append(
                Candidate(
                    entry.backend_id,
                    kept=kept,
                    reason=reason,
                    score=scores.get(entry.backend_id),
                    tier=self.eligibility.tier(entry, demand),
                )
            )
        return Decision(
            self.strategy.name, winner, tuple(candidates), len(reached), demand.task, demand.model
        )

    def waiting_for(self, entry: Registered) -> int:
        """Requests in the queue that the backend could serve."""
        if not len(self.queue):
            return 0
        return sum(
            self.eligibility.unfit(entry, link, target) is None
            for ticket in self.queue
            for link, target in self.eligibility.links(ticket.demand)
        )

    def _choose(
        self, request: InferenceRequest, eligible: Eligible, now: float, excluded: Tried
    ) -> tuple[Registered, Decision] | None:
        """The winner of the best tier that has somebody free, and why."""
        for number, tier in enumerate(eligible.tiers):
            pool = Pool(tier, excluded, self._rng, now)
            scored = self.strategy.compare(pool, request)
            if not scored:
                continue
            winner = pick(scored, self._rng)
            candidates = tuple(
                Candidate(entry.backend_id, kept=True, score=score, tier=number)
                for score, entry in sorted(scored, key=lambda item: item[0])[:COMPARED]
            )
            self.strategy.chosen(winner, pool)
            model = tier.model
            if model is None and len(winner.models) == 1:
                (model,) = winner.models
            return winner, Decision(
                self.strategy.name, winner.backend_id, candidates, eligible.count, request.task, model
            )
        return None

    def _lease(
        self,
        request: InferenceRequest,
        eligible: Eligible,
        now: float,
        number: int,
        excluded: Tried,
    ) -> Attempt | None:
        choice = self._choose(request, eligible, now, excluded)
        if choice is None:
            return None
        entry, decision = choice
        entry.in_flight += 1
        if request.model is not None and decision.model != request.model:
            # An alias: the adapter and the statistics know the target's name.
            request = msgspec.structs.replace(request, model=decision.model)
        trial = entry.health.breaker.half_open
        if trial:
            entry.health.breaker.trial = True
        return Attempt(request, entry, number, decision, now, entry.stats.begin(decision.model), trial)

    def _may_wait(self, eligible: Eligible, excluded: Tried, now: float) -> bool:
        """Whether time or a freed slot can bring a backend that was not tried yet."""
        if any(
            (entry.backend_id, tier.model) not in excluded
            for tier in eligible.tiers
            for entry in tier.members
        ):
            return True
        return any(
            (entry.backend_id, model) not in excluded
            and (at := entry.health.returns_at(now)) is not None
            and at - now <= self.queue_timeout
            for entry, model in eligible.closed
        )

    def _let_time_pass(self, now: float) -> None:
        for entry in list(self._closed.values()):
            entry.health.passed(now)
            self.refresh(entry, now)

    def _forget(self, backend_id: str) -> None:
        self._closed.pop(backend_id, None)
        self._shown.pop(backend_id, None)

    def _serve(self, now: float) -> list[Turn]:
        granted: list[Turn] = []
        if not len(self.queue):
            return granted

        def grant(ticket: Ticket) -> bool:
            eligible = self.eligibility.find(ticket.demand)
            attempt = self._lease(ticket.request, eligible, now, ticket.attempt, ticket.excluded)
            if attempt is None:
                return False
            granted.append(Granted(attempt, ticket))
            return True

        self.queue.serve(grant)
        # Those who need the same share one answer: the queue may be long.
        may_wait: dict[tuple[Demand, Tried], bool] = {}
        for ticket in self.queue:
            demand, key = ticket.demand, (ticket.demand, ticket.excluded)
            if key not in may_wait:
                may_wait[key] = self._may_wait(self.eligibility.find(demand), ticket.excluded, now)
            if not may_wait[key] and self.queue.remove(ticket):
                granted.append(Expired(ticket, self.eligibility.refusal(demand)))
        return granted

    def _learn(
        self, entry: Registered, attempt: Attempt, outcome: Outcome, elapsed: float, now: float
    ) -> None:
        error = outcome.error
        if error is None:
            return
        match classify(error):
            case OutcomeClass.FAULT:
                entry.stats.failed(
                    model=attempt.request.model,
                    task=attempt.request.task,
                    stream=attempt.request.stream,
                    elapsed=elapsed,
                    now=now,
                )
                entry.health.failed(error, now, attempt.started_at, self._rng.uniform(1 - JITTER, 1 + JITTER))
            case OutcomeClass.BUSY:
                entry.health.busy(error, now)
            case OutcomeClass.MISCONFIGURED:
                entry.health.misconfigured(error, now)
            case OutcomeClass.SUCCESS:
                entry.health.succeeded(now, attempt.started_at)
            case OutcomeClass.NONE:
                pass
