"""``lab.hardware()`` over a server and in this process."""

import pytest

from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport


@pytest.mark.parametrize("where", ["server", "here"])
def test_hardware_has_a_text_and_an_html_form(server, where):
    with Lab(HttpTransport(server.url, server.key) if where == "server" else InProcessTransport()) as lab:
        report = lab.hardware()
    assert report["cores"] >= 1
    assert report["devices"][-1]["id"] == "cpu"
    assert "float32" in report["devices"][-1]["dtypes"]
    assert "cpu" in repr(report)
    assert "<table>" in report._repr_html_()
