"""Functions of a notebook that serve: to a server, and in local mode."""

import threading
import time

import pytest

import uia_lab
from uia_lab.access.keys import new_key
from uia_lab.access.principals import Principal
from uia_lab.domain.errors import BackendFailed, BadRequest, NotAllowed
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(params=["server", "local"])
def lab(request):
    if request.param == "server":
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    else:
        transport = InProcessTransport(request.getfixturevalue("service"))
    with Lab(transport) as lab:
        yield lab


def said(inputs):
    return inputs[-1]["content"]


def test_a_function_is_a_model_until_it_stops(lab):
    @lab.serve(model="shout")
    def shout(inputs):
        for word in said(inputs).split():
            yield word.upper() + " "

    assert "shout" in lab.models
    assert lab.generate("be loud", model="shout").text == "BE LOUD "
    assert list(shout([{"content": "called"}])) == ["CALLED "], "it is still the function"
    assert (shout.__name__, shout.state, lab.served) == ("shout", "serving", [shout])
    assert "'shout' (text-generation)" in repr(shout)
    shout.stop()
    shout.stop()
    until(lambda: "shout" not in lab.models)
    assert (shout.state, lab.served) == ("stopped", [])
    assert not lab.closed


def test_serving_again_replaces(lab):
    for word in ("first", "second"):

        @lab.serve(model="word")
        def say(word=word):
            return word

        assert lab.generate("x", model="word").text == word
    backends = [item for item in lab.status()["backends"] if "word" in item["models"]]
    assert len(backends) == 1
    assert len(lab.served) == 1


def test_its_name_is_the_model_and_tasks_have_aliases(lab):
    @lab.serve(task="embedding", name="Sizes")
    def sizes(inputs):
        return [[float(len(text)), 1.0] for text in inputs]

    assert lab.embed(["a", "bc"], model="sizes").tolist() == [[1.0, 1.0], [2.0, 1.0]]
    (shown,) = [item for item in lab.status()["backends"] if item["name"] == "Sizes"]
    assert (shown["tasks"], shown["models"]) == (["text-embedding"], ["sizes"])


def test_what_it_raises_is_shown_here_and_not_told_there(lab, capfd):
    @lab.serve(model="broken")
    def broken_in_the_notebook():
        raise ZeroDivisionError("secret detail")

    with pytest.raises(BackendFailed) as caught:
        lab.generate("x", model="broken", show=False)
    assert "secret" not in str(caught.value)
    shown = capfd.readouterr().err
    assert "ZeroDivisionError: secret detail" in shown
    assert "broken_in_the_notebook" in shown
    assert "uia_lab/domain" not in shown, "the traceback begins with the function"


def test_async_functions_serve(lab):
    @lab.serve(model="slow")
    async def slow(inputs):
        for word in said(inputs).split():
            yield word

    @lab.serve(model="once")
    async def once(inputs):
        return said(inputs)

    assert lab.generate("a b", model="slow").text == "ab"
    assert lab.generate("a b", model="once").text == "a b"


def test_a_function_may_ask_its_own_lab(lab):
    @lab.serve(model="twice")
    def twice(inputs):
        return lab.generate(said(inputs), model="w", show=False).text * 2

    assert lab.generate("a b", model="twice").text == "a b a b "


def test_bad_arguments(lab):
    with pytest.raises(BadRequest, match="parentheses"):
        lab.serve(said)
    with pytest.raises(BadRequest, match="needs 'weather'"):
        lab.serve("m")(lambda weather: weather)
    with pytest.raises(BadRequest, match="no name"):
        lab.serve()(lambda inputs: inputs)
    with pytest.raises(BadRequest, match="unknown task"):
        lab.serve(task="dancing")(said)
    with pytest.raises(BadRequest, match="only a function"):
        lab.serve(model="m")(7)
    with pytest.raises(BadRequest):
        lab.serve(model="m", max_concurrency=0)(said)
    assert lab.served == []


def test_closing_the_lab_ends_what_it_serves(server):
    lab = Lab(HttpTransport(server.url, server.key))
    serving = lab.serve(model="m")(said)
    with Lab(HttpTransport(server.url, server.key)) as other:
        assert "m" in other.models
        lab.close()
        until(lambda: "m" not in other.models)
    assert serving.state == "stopped"
    with pytest.raises(RuntimeError, match="closed"):
        lab.serve(model="m")(said)
    assert not [thread for thread in threading.enumerate() if thread.name == "uia-serve"]


def test_a_key_that_may_not_add_backends(server, service):
    key = new_key()
    service.keys.add(key, Principal("reader", frozenset({"infer", "read"})))
    with Lab(HttpTransport(server.url, key)) as lab:
        with pytest.raises(NotAllowed, match="admin"):
            lab.serve(model="m")(said)
        assert lab.served == []


def test_local_mode_refuses_to_wait_for_itself(service):
    with Lab(InProcessTransport(service)) as lab:

        @lab.serve(model="knot")
        async def knot():
            return lab.generate("x", model="w", show=False).text

        with pytest.raises(BackendFailed):
            lab.generate("x", model="knot")


def test_the_worker_is_a_public_name():
    assert uia_lab.Worker.__name__ == "Worker"
