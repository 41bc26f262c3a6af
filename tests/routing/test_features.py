"""What a request needs a backend to be able to do, and what is said where nobody can."""

import pytest

from uia_lab.domain.backends import BackendStatus, BackendType, Probe
from uia_lab.domain.errors import ModelNotFound, NoBackendAvailable, Unsupported
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.routing.features import NAMES, needed_features
from uia_lab.routing.turns import Granted

TOOLS = {"tools": [{"type": "function", "function": {"name": "look"}}]}


def ask(model="m", content="x", task="text-generation", hints=None, **parameters):
    messages = [{"role": "user", "content": content}]
    return InferenceRequest(
        task, model, messages=messages, parameters=parameters, routing=hints or RoutingHints()
    )


def winner(router, request):
    answer = router.begin(request, 0.0)
    return answer.attempt.backend.backend_id if isinstance(answer, Granted) else answer.error


@pytest.mark.parametrize(
    ("parameters", "content", "needed"),
    [
        ({}, "x", set()),
        (TOOLS, "x", {"tools"}),
        ({"tools": [], "logprobs": False, "response_format": {"type": "text"}}, "x", set()),
        (
            {"response_format": {"type": "json_object"}, "logprobs": True},
            "x",
            {"response_format", "logprobs"},
        ),
        ({"seed": 1, "temperature": 0.5, "user": "u"}, "x", set()),
        ({}, [{"type": "text", "text": "x"}], set()),
        ({}, [{"type": "image_url", "image_url": {"url": "u"}}], {"vision"}),
        ({}, [{"type": "input_audio"}, {"type": "file"}], {"audio", "files"}),
        ({}, ["x", {"type": 3}, None], set()),
    ],
)
def test_what_is_needed(parameters, content, needed):
    assert needed_features(ask(content=content, **parameters)) == needed
    assert needed <= set(NAMES)


def test_the_names_of_other_tasks_mean_other_things():
    images = InferenceRequest("image-generation", inputs="x", parameters={"response_format": "b64_json"})
    assert needed_features(images) == frozenset()


def test_a_backend_that_has_the_feature_is_chosen(router, add):
    add("plain")
    add("able", features={"tools", "vision"})
    assert {winner(router, ask(**TOOLS)) for _ in range(4)} == {"able"}
    assert {winner(router, ask()) for _ in range(4)} == {"plain", "able"}


def test_where_nobody_has_it_the_parameter_is_named(router, add):
    add("plain", features={"seed"})
    add("other", models=("n",), features={"tools"})
    error = winner(router, ask(**TOOLS))
    assert isinstance(error, Unsupported)
    assert error.param == "tools"
    assert "plain" in error.message
    image = winner(router, ask(content=[{"type": "image_url", "image_url": {"url": "u"}}]))
    assert (type(image), image.param) == (Unsupported, "messages")
    assert isinstance(winner(router, ask("nobody's", **TOOLS)), ModelNotFound)
    add("drained").enabled = False
    assert winner(router, ask(**TOOLS)).param == "tools"


def test_one_that_has_it_but_is_away_is_not_called_unsupported(router, add):
    add("plain")
    away = add("able", features={"tools"})
    router.probed(away, Probe(BackendStatus.OFFLINE, "gone"), 0.0)
    assert isinstance(winner(router, ask(**TOOLS)), NoBackendAvailable)


def test_one_that_may_not_be_used_does_not_count(router, add):
    add("cloud", BackendType.API, external=True, features={"tools"})
    add("plain")
    router.eligibility.external_policy = "never"
    assert winner(router, ask(**TOOLS)).param == "tools"


def test_the_default_model_gives_way_to_one_that_can(router, add):
    router.eligibility.default_models = {"text-generation": "smol"}
    add("local", models=("smol",))
    assert winner(router, ask(None, **TOOLS)).param == "tools"
    add("server", models=("big",), features={"tools"})
    assert winner(router, ask(None, **TOOLS)) == "server"
    assert winner(router, ask(None)) == "local"


def test_an_alias_goes_on_to_the_link_that_can(router, add):
    add("a", models=("small",))
    add("b", models=("big",), features={"tools"})
    router.set_alias("best", ["small", "big"])
    assert winner(router, ask("best", **TOOLS)) == "b"
    assert winner(router, ask("best")) == "a"
    router.set_alias("worse", ["small"])
    assert winner(router, ask("worse", **TOOLS)).param == "tools"


def test_explain_says_what_is_missing(router, add):
    add("plain")
    (candidate,) = router.explain(ask(**TOOLS), 0.0).candidates
    assert candidate.reason == "features: has no tools"
