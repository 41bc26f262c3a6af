import contextlib
import io

import openai
import pytest

from uia_lab.domain.backends import BackendType
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.snippet import openai_snippet


def request(**fields):
    return InferenceRequest("chat", "w", messages=[{"role": "user", "content": 'say "one" two'}], **fields)


def test_it_runs_and_says_the_same(server, monkeypatch):
    with Lab(HttpTransport(server.url, server.key)) as lab:
        answer = lab.generate(
            "one two three", model="w", max_tokens=2, backend="words", repetition_penalty=1.1
        )
    code = answer.to_openai()
    assert server.key not in code
    monkeypatch.setenv("UIA_LAB_TOKEN", server.key)
    said = io.StringIO()
    names = {}
    with contextlib.redirect_stdout(said):
        exec(compile(code, "snippet", "exec"), names)
    names["client"].close()
    assert said.getvalue() == answer.text == "one two "


def test_no_server_and_hints():
    hints = RoutingHints(
        backend_id="a", preferred_types=(BackendType.GPU,), excluded_backends=frozenset({"b"}), deadline_s=5
    )
    code = openai_snippet(request(routing=hints, parameters={"top_k": 3, "seed": 1}), None)
    compile(code, "snippet", "exec")
    assert "uia_lab serve" in code
    for part in (
        "'top_k': 3",
        "'backend': 'a'",
        "'prefer': ['gpu']",
        "'exclude': ['b']",
        "seed=1",
        "8000/v1",
    ):
        assert part in code


def test_without_a_model_the_default_is_asked_for(server):
    code = openai_snippet(InferenceRequest("chat", messages=[{"role": "user", "content": "x"}]), server.url)
    assert "model=None" in code
    assert openai.__version__


@pytest.mark.parametrize("text", ['"""', "\\", "{x}", "'\n'"])
def test_whatever_was_said_is_quoted(text):
    asked = InferenceRequest("chat", "w", messages=[{"role": "user", "content": text}])
    compile(openai_snippet(asked, "http://127.0.0.1:1/"), "snippet", "exec")
