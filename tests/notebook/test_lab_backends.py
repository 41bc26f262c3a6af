"""``lab.backends`` over a server and in this process: one face."""

import asyncio
import threading

import pytest

from tests.upstreams.scripted_api import ScriptedApi, words
from uia_lab.domain.errors import BackendFailed, BadRequest, NoBackendAvailable
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport


@pytest.fixture
def api():
    """A scripted API on a loop of its own, since the test itself blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ScriptedApi().lists("far-model", "other", "third")
    server.answers["POST", "/v1/chat/completions"] = (200, words("from ", "afar"))

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    run(server.__aenter__())
    yield server
    run(server.__aexit__())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(params=["server", "local"])
def lab(request, service):
    if request.param == "server":
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    else:
        transport = InProcessTransport(service)
    with Lab(transport) as opened:
        yield opened


def test_a_backend_is_added_used_changed_and_removed(lab, api):
    added = lab.backends.add(api.url, id="far", name="Far <b>", weight=2, max_concurrency=5)
    assert (added.id, added.status, added["name"]) == ("far", "healthy", "Far <b>")
    assert added["models"] == ["far-model", "other", "third"]
    assert "far" in lab.backends
    assert lab.generate("hi", "far-model", show=False).text == "from afar"

    table = lab.backends
    assert list(table) == ["words", "lengths", "broken", "far"]
    assert len(table) == 4
    text = repr(table)
    assert "4 backends · lab.backends.add(" in text
    assert f"{api.url}/v1" in text
    assert "far-model, other and 1 more" in text
    html = table._repr_mimebundle_()["text/html"]
    assert html.startswith("<table>")

    one = lab.backends["far"]
    assert one.drain()["enabled"] is False
    assert "drained" in repr(one)
    with pytest.raises(NoBackendAvailable, match="drained"):
        lab.generate("hi", "far-model", show=False)
    assert one.enable()["enabled"] is True
    assert one.set_weight(3)["weight"] == 3
    assert lab.backends["far"]["weight"] == 3
    assert one.probe().reason
    assert "backend far" in one._repr_mimebundle_()["text/html"]
    with pytest.raises(BadRequest):
        one.set_weight(0)
    one.remove()
    assert "far" not in lab.backends
    with pytest.raises(BadRequest, match="there is no backend 'far'"):
        lab.backends["far"]


def test_what_cannot_be_added_says_why(lab, api):
    with pytest.raises(NoBackendAvailable, match="nobody answers at"):
        lab.backends.add("http://127.0.0.1:9")
    api.answers.clear()
    with pytest.raises(BackendFailed, match="none of the servers known"):
        lab.backends.add(api.url)
    for fields in (
        {"tasks": ["cooking"]},
        {"options": {"headers": {"Authorization": "x"}}},
        {"weight": "much"},
    ):
        with pytest.raises(BadRequest):
            lab.backends.add(api.url, **fields)
    assert len(lab.backends) == 3


def test_what_was_found_and_is_not_used_stands_below(lab, service, api):
    from uia_lab.discovery.apis import Found

    class Told:
        def found(self):
            return [Found("http://127.0.0.1:8080", "port 8080", None, None, False, "wants a <key>")]

        async def stop(self):
            pass

    lab.backends.add(api.url, id="far")
    service.apis, before = Told(), service.apis
    try:
        table = lab.backends
        assert table.found[0]["reason"] == "wants a <key>"
        assert "not used" in repr(table)
        assert "wants a &lt;key&gt;" in table._repr_mimebundle_()["text/html"]
    finally:
        service.apis = before
