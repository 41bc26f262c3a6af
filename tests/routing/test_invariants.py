"""Whatever happens in whatever order, leases, counters and waiting requests add up."""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from uia_lab.domain.backends import BackendCapabilities, BackendStatus, BackendType, Probe
from uia_lab.domain.errors import BackendFailed, BadRequest, RateLimited
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.routing.registry import Registered
from uia_lab.routing.router import Router
from uia_lab.routing.turns import Expired, Granted, Outcome, Queued

OUTCOMES = [
    Outcome("ok"),
    Outcome("cancelled"),
    Outcome("failed", BackendFailed("fault")),
    Outcome("rejected", RateLimited("busy", retry_after=2.0)),
    Outcome("rejected", BadRequest("no")),
]


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.router = Router("best_performance", rng=random.Random(3), queue_size=4, queue_timeout=10.0)
        self.now = 0.0
        self.leased = []
        self.queued = set()
        self.entries = []

    def take(self, turns):
        for turn in turns:
            assert turn.ticket in self.queued
            self.queued.discard(turn.ticket)
            if isinstance(turn, Granted):
                self.leased.append(turn.attempt)
            else:
                assert isinstance(turn, Expired)

    @rule(
        name=st.sampled_from("abcd"),
        kind=st.sampled_from(list(BackendType)),
        model=st.sampled_from([(), ("m",), ("n",)]),
        limit=st.sampled_from([None, 1, 2]),
    )
    def register(self, name, kind, model, limit):
        entry = Registered(
            name, name, kind, None, None,
            BackendCapabilities({"text-generation"}, set(model)),
            frozenset(model), False, None, {}, 1.0, limit, self.now,
        )  # fmt: skip
        self.entries.append(entry)
        self.router.register(entry, self.now)
        self.take(self.router.tick(self.now))

    @rule(name=st.sampled_from("abcd"))
    def unregister(self, name):
        _, turns = self.router.unregister(name, self.now)
        self.take(turns)

    @rule(
        model=st.sampled_from([None, "m", "n"]),
        kind=st.sampled_from([(), (BackendType.API,), (BackendType.GPU, BackendType.CLI)]),
        principal=st.sampled_from(["ann", "bob"]),
        priority=st.integers(0, 2),
    )
    def begin(self, model, kind, principal, priority):
        hints = RoutingHints(preferred_types=kind, priority=priority)
        request = InferenceRequest("text-generation", model, "x", principal=principal, routing=hints)
        answer = self.router.begin(request, self.now)
        if isinstance(answer, Granted):
            self.leased.append(answer.attempt)
            entry = answer.attempt.backend
            assert entry.routable
            assert entry.enabled
            tier = self.router.eligibility.tier(entry, self.router.eligibility.demand(request))
            for other in self.router.registry:
                fits = model is None or not other.models or model in other.models
                if fits and other.routable and other.enabled and other.free and other is not entry:
                    rank = kind.index(other.type) if other.type in kind else len(kind)
                    assert rank >= tier, "preferences are tiers"
        elif isinstance(answer, Queued):
            self.queued.add(answer.ticket)

    @rule(index=st.integers(0, 50), outcome=st.sampled_from(OUTCOMES), seconds=st.floats(0, 3))
    def finish(self, index, outcome, seconds):
        if self.leased:
            self.now += seconds
            attempt = self.leased.pop(index % len(self.leased))
            self.take(self.router.finish(attempt, outcome, self.now))

    @rule(index=st.integers(0, 50))
    def leave(self, index):
        if self.queued:
            ticket = sorted(self.queued, key=lambda item: item.number)[index % len(self.queued)]
            self.router.leave(ticket)
            self.queued.discard(ticket)

    @rule(seconds=st.floats(0, 20))
    def tick(self, seconds):
        self.now += seconds
        self.take(self.router.tick(self.now))

    @rule(name=st.sampled_from("abcd"), status=st.sampled_from(list(BackendStatus)))
    def probe(self, name, status):
        entry = self.router.registry.get(name)
        if entry is not None:
            self.take(self.router.probed(entry, Probe(status, "looked"), self.now))

    @rule(name=st.sampled_from("abcd"), enabled=st.booleans())
    def drain(self, name, enabled):
        entry = self.router.registry.get(name)
        if entry is not None:
            self.take(self.router.set_enabled(entry, self.now, enabled=enabled))

    @invariant()
    def leases_add_up(self):
        for entry in self.entries:
            held = sum(attempt.backend is entry for attempt in self.leased)
            assert entry.in_flight == held == entry.stats.figures.counters.in_flight
            assert entry.max_concurrency is None or held <= entry.max_concurrency

    @invariant()
    def no_more_than_half_are_ejected(self):
        eligibility = self.router.eligibility
        for model in (None, "m", "n"):
            demand = eligibility.demand(InferenceRequest("text-generation", model, "x"))
            let_in = {entry for tier in eligibility.find(demand).tiers for entry in tier.members}
            fitting = [e for e in self.router.registry if e.enabled and eligibility.unfit(e, demand) is None]
            out = [entry for entry in fitting if entry.health.ejected and entry not in let_in]
            assert len(out) <= max(1, len(fitting) // 2)

    @invariant()
    def one_trial_at_a_time(self):
        for entry in self.entries:
            trials = [attempt for attempt in self.leased if attempt.backend is entry and attempt.trial]
            assert not entry.health.breaker.half_open or len(trials) <= 1

    @invariant()
    def nobody_waits_unseen(self):
        assert set(self.router.queue) == self.queued
        assert sum(self.router.queue.counts().values()) == len(self.queued)

    @invariant()
    def nobody_waits_beside_a_free_backend(self):
        for ticket in self.queued:
            eligible = self.router.eligibility.find(ticket.demand)
            assert not any(entry.free for tier in eligible.tiers for entry in tier.members)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestInvariants = Machine.TestCase
