"""A healthy backend that can serve is never starved, whatever the strategy, speeds and weights."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uia_lab.domain.backends import BackendCapabilities, BackendType
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.routing.registry import Registered
from uia_lab.routing.router import Router
from uia_lab.routing.turns import Outcome


def entry(name, weight):
    capabilities = BackendCapabilities({"text-generation"}, {"m"})
    return Registered(
        name,
        name,
        BackendType.GPU,
        None,
        None,
        capabilities,
        frozenset({"m"}),
        False,
        None,
        {},
        weight,
        None,
        0.0,
    )


@pytest.mark.parametrize("strategy", ["round_robin", "least_loaded", "best_performance", "weighted_random"])
@settings(max_examples=10, deadline=None)
@given(
    backends=st.lists(st.tuples(st.floats(0.5, 4), st.floats(0.001, 5)), min_size=2, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_everyone_gets_some(strategy, backends, seed):
    router = Router(strategy, rng=random.Random(seed))
    seconds = {}
    for number, (weight, each) in enumerate(backends):
        seconds[f"b{number}"] = each
        router.register(entry(f"b{number}", weight), 0.0)
    seen, now = set(), 0.0
    for turn in range(1200):
        hints = RoutingHints(session_id=str(turn))
        attempt = router.begin(InferenceRequest("text-generation", "m", "x", routing=hints), now).attempt
        now += seconds[attempt.backend.backend_id]
        router.finish(attempt, Outcome("ok", usage=Usage(1, 1)), now)
        seen.add(attempt.backend.backend_id)
    assert seen == set(seconds)
