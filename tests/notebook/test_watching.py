"""What widgets ask of a service, over HTTP and in the same process: the same questions, the same answers."""

import pytest

from uia_lab.domain.errors import BadRequest, InferenceError
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport


@pytest.fixture(params=["http", "local"])
def lab(request, service):
    if request.param == "http":
        server = request.getfixturevalue("server")
        lab = Lab(HttpTransport(server.url, server.key))
    else:
        lab = Lab(InProcessTransport(service))
    with lab:
        yield lab


def ask(lab, name, *arguments):
    return lab._ask(getattr(lab._transport, name), *arguments)


def test_what_was_served_is_in_the_history_and_in_the_log(lab, service):
    assert lab.generate("a b", "w", show=False).text == "a b "

    async def taken():
        service.history.take()

    lab._ask(taken)
    told = ask(lab, "history")
    assert told["instance_id"] == service.instance_id
    assert sum(sample["backends"].get("words", [0])[0] for sample in told["samples"]) == 1
    assert ask(lab, "history", told["taken"])["samples"] == []
    (listed,) = [item for item in ask(lab, "requests", 10)["requests"] if item["outcome"] == "ok"]
    assert listed["backend_id"] == "words"
    found = ask(lab, "request", listed["id"])
    assert found["decision"]["winner"] == "words"
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["ok"]
    with pytest.raises(InferenceError, match="no such request"):
        ask(lab, "request", "nobody's")


def test_a_strategy_is_chosen_among_the_known(lab):
    known = ask(lab, "strategies")
    assert known["strategy"] in known["known"]
    assert ask(lab, "set_strategy", "round_robin") == {"strategy": "round_robin"}
    assert ask(lab, "strategies")["strategy"] == "round_robin"
    with pytest.raises(BadRequest, match="round_robbin"):
        ask(lab, "set_strategy", "round_robbin")


def test_why_a_backend_serves(lab):
    explanation = lab.explain(model="shared", prefer="gpu")
    assert explanation.winner in ("words", "broken")
    assert {item["backend_id"] for item in explanation["candidates"]} == {"words", "lengths", "broken"}
    assert lab.explain(model="shared", backend="broken").winner == "broken"
    assert lab.explain(model="nobody-has-it").winner is None
    with pytest.raises(BadRequest):
        lab.explain("dancing")


def test_what_went_wrong_at_a_backend(lab):
    with pytest.raises(InferenceError):
        lab.generate("x", "b", show=False)
    told = ask(lab, "backend", "broken")
    assert told["errors"][0]["code"] == "backend_failed"
    assert told["transitions"][0]["backend_id"] == "broken"
    with pytest.raises(InferenceError, match="nobody"):
        ask(lab, "backend", "nobody")


def test_a_request_says_why_it_was_served_there(lab):
    lab.generate("a", "w", show=False)
    (request,) = ask(lab, "requests", 10)["requests"]
    assert lab.explain(request=request["id"]).winner == "words"


def test_balance_has_a_table(lab):
    lab.generate("a", "w", show=False)
    assert "words" in lab.balance(window=300).still()["text/plain"]
