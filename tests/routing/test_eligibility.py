"""Who can serve, and the reason of each who cannot."""

import pytest

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest, ModelNotFound, NoBackendAvailable
from uia_lab.routing.turns import Granted, Refused


def winner(router, request):
    answer = router.begin(request, 0.0)
    return answer.attempt.backend.backend_id if isinstance(answer, Granted) else answer.error


def test_an_unknown_model_lists_what_there_is(router, add, request_for):
    add("a", models=("smol", "mini"))
    error = winner(router, request_for("smoll"))
    assert isinstance(error, ModelNotFound)
    assert "Did you mean 'smol'? Known: mini, smol." in error.message
    assert error.param == "model"


def test_an_empty_model_set_takes_any(router, add, request_for):
    add("any", models=())
    assert winner(router, request_for("whatever")) == "any"


def test_a_model_asked_for_another_task_says_what_it_does(router, add, request_for):
    add("a", models=("mini",), tasks={"text-embedding"})
    error = winner(router, request_for("mini"))
    assert isinstance(error, BadRequest)
    assert "does text-embedding, not text-generation" in error.message


def test_no_model_means_the_default_local_one(router, add, request_for):
    router.eligibility.default_models = {"text-generation": "smol"}
    add("other", models=("big",))
    assert winner(router, request_for(None)) == "other", "without the default model anyone serves"
    add("local", models=("smol",))
    assert {winner(router, request_for(None)) for _ in range(4)} == {"local"}
    assert winner(router, request_for(None, backend_id="other")) == "other"


def test_protocols_and_pins(router, add, request_for):
    add("a", protocols={"http"})
    add("b", protocols={"http", "websocket"})
    assert winner(router, request_for(required_protocols=frozenset({"websocket"}))) == "b"
    assert winner(router, request_for(backend_id="a")) == "a"
    error = winner(router, request_for(backend_id="c"))
    assert isinstance(error, BadRequest)
    assert "no backend 'c'" in error.message


def test_an_excluded_backend_is_passed_over(router, add, request_for):
    add("a")
    add("b")
    assert {winner(router, request_for(excluded_backends=frozenset({"a"}))) for _ in range(4)} == {"b"}
    error = winner(router, request_for(excluded_backends=frozenset({"a", "b"})))
    assert isinstance(error, NoBackendAvailable)
    assert "a: excluded by the request" in error.message
    assert winner(router, request_for(backend_id="a")) == "a", "the cache tells them apart"


@pytest.mark.parametrize(
    ("policy", "request_fields", "served"),
    [
        ("named", {"model": None}, False),
        ("named", {"model": "gpt"}, True),
        ("named", {"model": None, "backend_id": "cloud"}, True),
        ("named", {"model": None, "preferred_types": (BackendType.API,)}, True),
        ("any", {"model": None}, True),
        ("never", {"model": "gpt", "backend_id": "cloud"}, False),
    ],
)
def test_an_external_backend_serves_only_when_named(router, add, request_for, policy, request_fields, served):
    router.eligibility.external_policy = policy
    add("cloud", BackendType.API, models=("gpt",), external=True)
    result = winner(router, request_for(**request_fields))
    if served:
        assert result == "cloud"
    else:
        assert isinstance(result, NoBackendAvailable)
        told = router.explain(request_for(**request_fields), 0.0).candidates[0].reason
        assert told == ("external: not named" if policy == "named" else "external: never allowed")


def test_a_backend_that_takes_any_model_is_not_named_by_one(router, add, request_for):
    add("cloud", BackendType.API, models=(), external=True)
    assert isinstance(router.begin(request_for("gpt"), 0.0), Refused)


def test_the_lists_follow_the_registry(router, add, request_for):
    add("a")
    assert winner(router, request_for()) == "a"
    router.unregister("a", 0.0)
    assert isinstance(winner(router, request_for()), ModelNotFound)
    add("a", tasks={"text-embedding"})
    assert isinstance(winner(router, request_for()), BadRequest)
    add("a")
    assert winner(router, request_for()) == "a"
    assert len(router.registry) == 1
