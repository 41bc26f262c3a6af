import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from uia_lab.domain.errors import Unauthenticated
from uia_lab.notebook import finding
from uia_lab.notebook.connect import connect, current, destination, forget
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.transport import NotConnected


@pytest.fixture
def environment(server, monkeypatch):
    monkeypatch.setenv("UIA_LAB_URL", server.url)
    monkeypatch.setenv("UIA_LAB_TOKEN", server.key)


def test_the_given_address_comes_first(server, monkeypatch):
    monkeypatch.setenv("UIA_LAB_URL", "http://127.0.0.1:1/")
    assert connect(server.url, server.key).where == server.url


def test_then_the_server_of_this_kernel(server, environment):
    assert destination() == server.url
    assert connect().where == server.url


def test_its_token_goes_to_its_own_address_only(server, environment):
    assert connect(server.url.rstrip("/")).where == server.url
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Unauthenticated):
        connect(elsewhere)


def test_else_this_process(service, monkeypatch):
    monkeypatch.setattr(
        "uia_lab.notebook.local_transport.InProcessTransport", lambda: InProcessTransport(service)
    )
    lab = connect()
    assert "this kernel" in lab.where
    assert lab.generate("a b", model="w").text == "a b "


def test_local_is_this_process_whatever_the_environment_says(service, monkeypatch):
    monkeypatch.setenv("UIA_LAB_URL", "http://127.0.0.1:1/")
    monkeypatch.setattr(
        "uia_lab.notebook.local_transport.InProcessTransport", lambda: InProcessTransport(service)
    )
    assert "this kernel" in connect("local").where
    assert "this kernel" in connect().where


def test_the_default_lab_is_shared_while_it_is_open(server, environment):
    first = connect()
    assert connect() is first
    assert current() is first
    first.close()
    second = current()
    assert second is not first
    forget()
    assert second.closed


def test_a_failing_server_says_what_to_do(monkeypatch):
    monkeypatch.setenv("UIA_LAB_URL", "http://127.0.0.1:1/uia/")
    monkeypatch.setenv("UIA_LAB_TOKEN", "top-secret")
    with pytest.raises(NotConnected, match="unset UIA_LAB_URL") as caught:
        connect()
    assert "top-secret" not in str(caught.value)


def test_the_token_of_a_server_that_was_killed_goes_to_nobody(tmp_path, monkeypatch):
    """At its port there may be somebody else's server by now."""
    heard = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok", "instance_id": "mine"}')

        def log_message(self, *_):
            pass

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    for name in ("UIA_LAB_URL", "JUPYTERHUB_SERVICE_URL", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(finding, "_kernel_id", lambda: "a-kernel")
    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        try:
            told = {"url": f"http://127.0.0.1:{stranger.server_port}/", "base_url": "/", "token": "t" * 32}
            (tmp_path / f"jpserver-{ended.pid}.json").write_text(json.dumps(told))
            assert finding.find() == (None, "")
            monkeypatch.setenv("JPY_PARENT_PID", str(ended.pid))
            place, why = finding.find()
        finally:
            stranger.shutdown()
            thread.join()
    assert place is None
    assert "has ended" in why
    assert heard == []
