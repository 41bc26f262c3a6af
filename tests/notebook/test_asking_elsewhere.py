"""An answer goes on at another backend, or is asked of another one; over a server and in this process."""

import threading

import pytest

from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed, NoBackendAvailable
from uia_lab.domain.events import Chunk, Finished, Started, Text, Usage
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.widgets.generation_view import GenerationView

WORDS = ["Once ", "upon ", "a ", "time"]


class Continuing:
    """Says WORDS from where it is told to go on, and breaks off after some."""

    capabilities = BackendCapabilities(
        {"text-generation"}, {"tale"}, supports_streaming=True, resume=True, model_digest={"tale": "d"}
    )

    def __init__(self, breaks_after=None):
        self.breaks_after = breaks_after

    async def start(self): ...

    async def stop(self): ...

    async def probe(self):
        return Probe(BackendStatus.HEALTHY, "here")

    async def infer(self, request):
        yield Started("")
        said = request.resumed.text if request.resumed else ""
        rest = WORDS[len(said.split()) :]
        for number, word in enumerate(rest):
            if number == self.breaks_after:
                raise BackendFailed("cut")
            yield Chunk(number, Text(word))
        yield Finished("".join(rest), Usage(4, len(rest)))


@pytest.fixture(params=["server", "local"])
def lab(request, service):
    async def add():
        manager = service.get_backend_manager()
        manager.set_strategy("round_robin")
        manager.register_backend("first", "gpu", "First", Continuing(2), weight=100.0)
        manager.register_backend("second", "gpu", "Second", Continuing())
        for name in ("first", "second"):
            await manager.probe(name)

    if request.param == "server":
        server = request.getfixturevalue("server")
        server.portal.call(add)
        transport = HttpTransport(server.url, server.key)
    else:
        transport = InProcessTransport(service)
    with Lab(transport) as lab:
        if request.param == "local":
            lab._thread.ask(add)
        yield lab


def test_the_switch_is_seen_where_it_happened(lab):
    answer = lab.generate("x", "tale")
    assert answer.text == "Once upon a time"
    (turn,) = answer.turns
    assert (turn.offset, turn.from_id, turn.to_id) == (10, "first", "second")
    assert "cut" in turn.reason
    assert [(item.backend_id, item.outcome) for item in answer.attempts] == [
        ("first", "failed"),
        ("second", "ok"),
    ]


def test_it_is_asked_elsewhere(lab):
    answer = lab.generate("one two", "shared", backend="words")
    again = answer.retry()
    assert answer.retried is again
    assert again.wait(50).state == "failed"
    assert [(item.backend_id, item.outcome) for item in again.attempts] == [("broken", "failed")]
    assert again.tried == {"broken"}
    back = again.retry("words").wait(50)
    assert (back.text, back.backend) == ("one two ", "words")
    nobody = lab.generate("one", "w").retry().wait(50)
    assert isinstance(nobody.error, NoBackendAvailable)
    assert "words: excluded by the request" in nobody.error.message


def test_the_browser_asks_for_places_and_elsewhere(lab):
    answer = lab.generate("one", "shared", backend="words")
    view = GenerationView(answer, direct=False, places=lab._async.generations.places)
    told = threading.Event()
    view.observe(lambda _: told.set(), "places")
    view._handle_custom_msg({"type": "places"}, [])
    assert told.wait(50)
    assert {(place["id"], place["tried"]) for place in view.places} == {("words", "yes"), ("broken", "")}
    view._handle_custom_msg({"type": "retry", "backend": 5}, [])
    assert answer.retried is None
    view._handle_custom_msg({"type": "retry", "backend": None}, [])
    assert answer.retried.wait(50).tried == {"broken"}
    lab.close()
    view._handle_custom_msg({"type": "retry", "backend": None}, [])
    assert "closed" in view.notice
    view.close()
