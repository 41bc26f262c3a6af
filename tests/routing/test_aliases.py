"""Aliases are ordered chains: the next target serves when those before cannot."""

import pytest

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BackendFailed, BadRequest, NoBackendAvailable
from uia_lab.routing.turns import Granted, Outcome, Queued, Refused


def winner(router, request, excluded=frozenset()):
    answer = router.begin(request, 0.0, excluded=excluded)
    assert isinstance(answer, Granted), answer
    return answer.attempt.backend.backend_id, answer.attempt.request.model


def test_the_chain_is_followed_in_order(router, add, request_for):
    add("big", models=("gpt",), max_concurrency=1)
    add("small", models=("smol",))
    router.set_alias("best", ["gpt", "smol"])
    first = router.begin(request_for("best"), 0.0).attempt
    assert (first.backend.backend_id, first.request.model) == ("big", "gpt")
    assert winner(router, request_for("best")) == ("small", "smol"), "the first target is busy"
    router.finish(first, Outcome("ok"), 1.0)
    assert winner(router, request_for("best")) == ("big", "gpt")


def test_one_backend_may_stand_in_a_chain_twice(router, add, request_for):
    add("a", models=("gpt", "mini"))
    router.set_alias("best", ["gpt", "mini"])
    assert winner(router, request_for("best")) == ("a", "gpt")
    assert winner(router, request_for("best"), frozenset({("a", "gpt")})) == ("a", "mini")


def test_targets_may_name_a_backend_or_a_type(router, add, request_for):
    add("a", BackendType.GPU, models=())
    add("b", BackendType.API, models=())
    router.set_alias("x", ["b:llama3:8b"])
    router.set_alias("y", ["gpu:llama3:8b"])
    router.set_alias("z", ["llama3:8b"])
    assert winner(router, request_for("x")) == ("b", "llama3:8b")
    assert winner(router, request_for("y")) == ("a", "llama3:8b")
    assert winner(router, request_for("z"))[1] == "llama3:8b", (
        "a colon that names nobody belongs to the model"
    )


def test_an_alias_names_an_external_backend(router, add, request_for):
    add("cloud", BackendType.API, models=(), external=True)
    assert isinstance(router.begin(request_for("gpt"), 0.0), Refused)
    router.set_alias("best", ["gpt"])
    assert winner(router, request_for("best")) == ("cloud", "gpt")
    router.eligibility.external_policy = "never"
    router.registry.version += 1
    assert isinstance(router.begin(request_for("best"), 0.0), Refused)


def test_one_who_waits_gets_the_first_target_that_is_free(router, add, request_for):
    add("big", models=("gpt",), max_concurrency=1)
    add("small", models=("smol",), max_concurrency=1)
    router.set_alias("best", ["gpt", "smol"])
    first, second = (router.begin(request_for("best"), 0.0).attempt for _ in range(2))
    assert isinstance(router.begin(request_for("best"), 0.0), Queued)
    (turn,) = router.finish(second, Outcome("ok"), 1.0)
    assert turn.attempt.request.model == "smol"
    assert router.finish(first, Outcome("ok"), 1.0) == []


def test_explain_and_refusal_know_the_chain(router, add, request_for):
    add("big", models=("gpt",))
    add("other", models=("mini",))
    router.set_alias("best", ["gpt"])
    told = router.explain(request_for("best"), 0.0)
    assert told.winner == "big"
    assert {item.backend_id: item.kept for item in told.candidates} == {"big": True, "other": False}
    for _ in range(5):
        router.finish(
            router.begin(request_for("gpt"), 0.0).attempt, Outcome("failed", BackendFailed("x")), 0.0
        )
    router.queue_timeout = 1.0
    answer = router.begin(request_for("best"), 0.0)
    assert isinstance(answer.error, NoBackendAvailable)


@pytest.mark.parametrize(
    ("name", "targets", "field"),
    [
        ("", ["a"], "name"),
        ("with space", ["a"], "name"),
        ("x", [], "targets"),
        ("x", "abc", "targets"),
        ("x", ["x"], "targets"),
        ("x", ["known"], "targets"),
        ("x", [7], "targets"),
        ("x", ["a"] * 33, "targets"),
    ],
)
def test_bad_aliases_name_the_field(router, name, targets, field):
    router.set_alias("known", ["m"])
    with pytest.raises(BadRequest) as caught:
        router.set_alias(name, targets)
    assert caught.value.param == field
    assert dict(router.eligibility.aliases) == {"known": ("m",)}


def test_a_deleted_alias_is_gone(router, add, request_for):
    add("a", models=("gpt",))
    router.set_alias("best", ["gpt"])
    winner(router, request_for("best"))
    assert router.delete_alias("best")
    assert not router.delete_alias("best")
    assert isinstance(router.begin(request_for("best"), 0.0), Refused)


def test_model_patterns(router, add, request_for):
    add("a", models=("gpt-*",))
    assert winner(router, request_for("gpt-4o")) == ("a", "gpt-4o")
    assert isinstance(router.begin(request_for("claude"), 0.0), Refused)
