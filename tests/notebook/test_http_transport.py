import time

import numpy as np
import pytest

from tests.upstreams.scripted_api import ScriptedApi
from uia_lab._version import __version__
from uia_lab.domain import errors
from uia_lab.domain.events import Chunk, Finished, Started, Text
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.notebook.http_errors import error_of
from uia_lab.notebook.http_stream import headers_of
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.transport import NotConnected


@pytest.fixture
def lab(server):
    with Lab(HttpTransport(server.url, server.key)) as lab:
        yield lab


def test_looks_around(lab, server):
    assert lab.where == server.url
    assert lab.instance_id == lab.status()["instance_id"]
    assert {"w", "b"} <= set(lab.models)


def test_a_stream_as_events(lab):
    async def collect():
        stream = lab._transport.stream(
            InferenceRequest(
                "chat",
                "w",
                messages=[{"role": "user", "content": "one two"}],
                routing=RoutingHints(backend_id="words", deadline_s=5),
            )
        )
        assert stream.request_id is None
        events = [event async for event in stream]
        await stream.aclose()
        return stream.request_id, events

    request_id, events = lab._ask(collect)
    assert request_id
    assert events[0] == Started("words")
    assert [event.delta for event in events if isinstance(event, Chunk)] == [Text("one "), Text("two ")]
    match events[-1]:
        case Finished(result="one two ", finish_reason="stop", usage=usage):
            assert usage.output_tokens == 2
        case other:
            pytest.fail(f"{other}")


def test_generates(lab):
    answer = lab.generate("one two three", model="w", max_tokens=2)
    assert (answer.text, answer.backend, answer.state) == ("one two ", "words", "done")


def test_who_was_tried_is_told(lab, service):
    """The stream's headers are sent with the first content; the log has the whole trail."""
    service.get_backend_manager().set_strategy("round_robin")
    for _ in range(6):
        answer = lab.generate("one two", model="shared")
        assert answer.backend == "words"
        trail = [(item.backend_id, item.outcome) for item in answer.attempts]
        assert trail in ([("words", "ok")], [("broken", "failed"), ("words", "ok")])
        if len(trail) == 2:
            return
    pytest.fail("the broken one was never tried")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"model": "nowhere"}, errors.InferenceError),
        ({"model": "w", "backend": "lengths"}, errors.InferenceError),
        ({"model": "w", "temperature": 99}, errors.BadRequest),
        ({"model": "b"}, errors.BackendFailed),
    ],
)
def test_errors_have_their_types(lab, arguments, kind):
    with pytest.raises(kind):
        lab.generate("x", **arguments)


def test_stop_ends_the_request_at_the_server(lab):
    answer = lab.generate("slowly " + "on " * 500, model="w", wait=False)
    deadline = time.monotonic() + 50
    while not answer.text and time.monotonic() < deadline:
        time.sleep(0.01)
    answer.stop()
    answer.wait(50)
    assert (answer.state, answer.error) == ("stopped", None)
    while lab.status()["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lab.status()["total_cancelled"] == 1


def test_somebody_else_may_cancel_it(lab):
    answer = lab.generate("slowly " + "on " * 500, model="w", wait=False)
    deadline = time.monotonic() + 50
    while answer.request_id is None and time.monotonic() < deadline:
        time.sleep(0.01)
    lab._ask(lab._transport.cancel, answer.request_id)
    assert answer.wait(50).state == "stopped"
    lab._ask(lab._transport.cancel, "req-of-nobody")


def test_embeds(lab):
    vectors = lab.embed(["a", "bc"])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1, 1], [2, 1]])


def test_a_wrong_token_is_refused_and_not_repeated(server):
    with pytest.raises(errors.Unauthenticated) as caught:
        Lab(HttpTransport(server.url, "uia-" + "x" * 40))
    assert "xxx" not in str(caught.value)


def test_nobody_there(unused_tcp_port):
    with pytest.raises(NotConnected, match="uia_lab serve"):
        Lab(HttpTransport(f"http://127.0.0.1:{unused_tcp_port}/"))


def test_another_kind_of_server(server):
    with pytest.raises(errors.InferenceError):
        Lab(HttpTransport(server.url + "elsewhere", server.key))


def test_addresses():
    transport = HttpTransport("http://me:secret@host:1/nb/uia?token=t", "other-secret")
    assert transport.url == "http://host:1/nb/uia/"
    assert "secret" not in repr(transport) + transport.where
    for bad in ("host:8888", "ftp://host/", "http://"):
        with pytest.raises(NotConnected, match="address"):
            HttpTransport(bad)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "m", "code": "context_length_exceeded"}}, errors.ContextTooLong),
        (429, {"error": {"message": "m", "code": "queue_full"}}, errors.QueueFull),
        (404, {"error": {"message": "m", "code": "not_found"}}, errors.ModelNotFound),
        (403, "<html>", errors.NotAllowed),
        (400, None, errors.BadRequest),
        (418, {"error": "teapot"}, errors.BackendFailed),
    ],
)
def test_error_of(status, body, kind):
    assert type(error_of(status, body, "there")) is kind


async def test_a_redirect_is_not_followed_and_takes_no_token_along():
    async with ScriptedApi() as here, ScriptedApi() as there:
        here.answers["GET", "/status"] = (302, b"", {"Location": f"{there.url}/login?next=x"})
        there.answers["GET", "/login"] = (200, {})
        transport = HttpTransport(here.url, "uia-a-token-that-stays-here")
        with pytest.raises(NotConnected, match=f"redirects to 127.0.0.1:{there.port}/login"):
            await transport.status()
        await transport.aclose()
        assert there.asked == []


def test_an_older_server_says_what_it_lacks(server, monkeypatch):
    with Lab(HttpTransport(server.url, server.key)) as lab:
        assert lab._transport._version == __version__
        with pytest.raises(errors.ModelNotFound):
            lab._ask(lab._transport._told, "GET", "no-such-door")
        for version, said in (("0.0.9", r"runs uia_lab 0\.0\.9"), (None, "an old one")):
            monkeypatch.setattr(lab._transport, "_version", version)
            with pytest.raises(errors.Unsupported, match=said + ".*has no /no-such-door.*upgrade it"):
                lab._ask(lab._transport._told, "GET", "no-such-door?a=b")


def test_the_session_goes_along():
    request = InferenceRequest("text-generation", "m", "x", routing=RoutingHints(session_id="s1"))
    assert headers_of(request)["x-uia-session"] == "s1"
