import threading

import pytest

from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.errors import BadRequest
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.widgets.compare_view import CompareView


@pytest.fixture(params=["server", "local"])
def lab(request, service):
    if request.param == "server":
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    else:
        transport = InProcessTransport(service)
    with Lab(transport) as lab:
        lab.status()
        can = BackendCapabilities({"text-generation"}, {"dear"}, price={"input": 1.0, "output": 2_000_000})

        async def add():
            manager = service.get_backend_manager()
            manager.register_backend("dear", "gpu", "Dear", lambda inputs: "x y z", can)
            await manager.probe("dear")

        request.getfixturevalue("server").portal.call(add) if request.param == "server" else lab._thread.ask(
            add
        )
        yield lab


def test_side_by_side(lab):
    answers = lab.compare("one two", models=["w", "dear", "b"])
    assert answers.labels == ("w", "dear", "b")
    assert [one.state for one in answers] == ["done", "done", "failed"]
    assert (answers[0].text, answers[1].text) == ("one two ", "x y z")
    assert answers.cost(0) is None
    assert answers.cost(1) == pytest.approx(2 * answers[1].usage.output_tokens, rel=1e-3)
    assert answers.fastest in (0, 1)
    bundle = answers._repr_mimebundle_()
    assert "out of paper" not in bundle["text/html"] or "failed" in bundle["text/html"]
    assert "== dear ==\nx y z" in bundle["text/plain"]
    assert "done first" in bundle["text/html"]


def test_backends_and_both(lab):
    assert lab.compare("a", backends=["words"]).labels == ("words",)
    both = lab.compare("a", models=["w", "shared"], backends=["words"])
    assert both.labels == ("w · words", "shared · words")
    assert {one.backend for one in both} == {"words"}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"models": []}, {"models": "w"}, {"models": ["w"] * 13}, {"models": [""], "backends": []}],
)
def test_nothing_sensible_to_compare(lab, arguments):
    with pytest.raises(BadRequest):
        lab.compare("a", **arguments)


def test_stop_one_and_all_from_the_browser(lab):
    answers = lab.compare("slowly " + "on " * 500, models=["w", "shared"], backends=["words"], wait=False)
    view = CompareView(answers, direct=False)
    begun = threading.Event()
    answers.subscribe(lambda: all(one.text for one in answers) and begun.set())
    assert begun.wait(50)
    view._handle_custom_msg({"type": "stop", "index": 7}, [])
    view._handle_custom_msg({"type": "stop", "index": 0}, [])
    assert answers[0].wait(50).state == "stopped"
    assert not answers.done, [repr(one) for one in answers]
    view._handle_custom_msg({"type": "stop"}, [])
    answers.wait(50)
    assert [one["state"] for one in view.columns] == ["stopped", "stopped"]
    assert "slowly" in view.table
    view.close()
