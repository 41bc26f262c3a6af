"""Tools and hybrids by ``lab.backends.add``: in this process and over a server."""

import sys
from pathlib import Path

import pytest

from uia_lab.domain.errors import BadRequest
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport

FAKE = str(Path(__file__).parents[1] / "upstreams" / "fake_cli.py")


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    monkeypatch.setenv("UIA_ENABLE_CLI_BACKENDS", "True")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.fixture(params=["server", "local"])
def lab(_tools, request):
    service = request.getfixturevalue("service")
    if request.param == "server":
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    else:
        transport = InProcessTransport(service)
    with Lab(transport) as opened:
        yield opened


def test_a_tool_of_ones_own_and_a_hybrid_of_two(lab):
    options = {"command": [sys.executable, FAKE, "echo", "lab"]}
    added = lab.backends.add(type="cli", id="mine", options=options)
    assert (added.status, added["type"], added["max_concurrency"]) == ("healthy", "cli", 1)
    assert lab.generate("a b", model="mine").text.strip() == "a b"
    parts = [{"type": "cli", "options": options}, {"type": "cli", "options": options}]
    both = lab.backends.add(type="hybrid", id="both", models=["m"], options={"parts": parts})
    assert both.status == "healthy"
    assert lab.generate("c d", model="m").text.strip() == "c d"
    with pytest.raises(BadRequest, match=r"options\.tool or options\.command"):
        lab.backends.add(type="cli")
    with pytest.raises(BadRequest, match="endpoint is missing"):
        lab.backends.add()
