"""``lab.keys`` against a real server, and what a saved notebook keeps of it."""

import re

import pytest

from uia_lab.domain.errors import BadRequest, Unauthenticated
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport


@pytest.fixture
def lab(server):
    with Lab(HttpTransport(server.url, server.key)) as lab:
        yield lab


def test_a_key_is_made_used_listed_and_revoked(lab, server):
    made = lab.keys.create("my-script", ["infer", "read"], models=["w*"], requests_per_minute=60)
    assert re.fullmatch(r"uia-[\w-]{43}", made.key)
    with Lab(HttpTransport(server.url, made.key)) as other:
        assert other.models == ["w"]
        keys = lab.keys
        assert [key["name"] for key in keys] == ["my-script"]
        keys.revoke("my-script")
        assert len(lab.keys) == len(keys) == 0
        with pytest.raises(Unauthenticated):
            other.models  # noqa: B018
    with pytest.raises(BadRequest, match="my-scrip"):
        lab.keys.revoke("my-scrip")


def test_no_form_of_a_key_shows_it(lab):
    made = lab.keys.create("shown", token_budget=1000)
    keys = lab.keys
    bundle = keys._repr_mimebundle_()
    for text in (repr(made), str(made), f"{made}", repr(keys), *bundle.values()):
        assert made.key not in text
        assert "shown" in text
    assert "0 of 1,000" in bundle["text/html"]
    assert "<table>" in bundle["text/html"]


def test_in_local_mode_it_says_what_to_do(service):
    with Lab(InProcessTransport(service)) as lab, pytest.raises(BadRequest, match="serve"):
        lab.keys.create("x")
