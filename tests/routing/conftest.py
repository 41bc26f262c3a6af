"""A router with backends that need no adapter: routing never touches it."""

import random
from collections.abc import Callable

import pytest

from uia_lab.domain.backends import BackendCapabilities, BackendType
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.routing.registry import Registered
from uia_lab.routing.router import Router

Add = Callable[..., Registered]


@pytest.fixture
def router() -> Router:
    return Router("round_robin", rng=random.Random(7), queue_size=3, queue_timeout=30.0)


@pytest.fixture
def add(router) -> Add:
    def register(backend_id, kind=BackendType.GPU, models=("m",), now=0.0, external=False, **fields):
        capabilities = BackendCapabilities(
            supported_tasks=fields.pop("tasks", {"text-generation"}),
            supported_models=set(models),
            protocols=fields.pop("protocols", {"http"}),
            features=fields.pop("features", set()),
        )
        entry = Registered(
            backend_id=backend_id,
            name=backend_id,
            type=kind,
            instance=None,
            original=None,
            capabilities=capabilities,
            models=frozenset(models),
            external=external,
            endpoint=None,
            metadata={},
            weight=fields.pop("weight", 1.0),
            max_concurrency=fields.pop("max_concurrency", None),
            registered_at=now,
        )
        router.register(entry, now)
        return entry

    return register


@pytest.fixture
def request_for():
    def make(model="m", task="text-generation", principal="ann", stream=False, **hints):
        return InferenceRequest(
            task, model, "x", principal=principal, stream=stream, routing=RoutingHints(**hints)
        )

    return make
