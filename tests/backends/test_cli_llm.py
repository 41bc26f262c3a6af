"""The real `llm` (PyPI) as a backend of the very house it asks: a circle through a local model."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

KEY = "uia-test-key-0123456789"
MODEL = "SmolLM2-135M-Instruct"
SHORT = ["-o", "max_tokens", "16", "-o", "temperature", "0"]


class Served:
    """``python -m uia_lab serve`` with llm on its PATH, set up to ask that very server."""

    def __init__(self, process, url):
        self.process, self.url = process, url

    def ask(self, method, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def chat(self, model, **fields):
        messages = [{"role": "user", "content": "Tell me a story about a lighthouse."}]
        return self.ask("POST", "v1/chat/completions", {"model": model, "messages": messages, **fields})

    def add(self, backend_id, environment):
        options = {"tool": "llm", "arguments": SHORT, "environment": environment}
        status, body = self.ask("POST", "backends", {"type": "cli", "id": backend_id, "options": options})
        assert status == 201, body
        return json.loads(body)

    def children(self):
        return [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.status() != psutil.STATUS_ZOMBIE
            and "llm" in " ".join(child.cmdline()[:3]).split("/")[-1]
        ]


def extra_models(port):
    """Two models of the house as llm knows them: one with a key of the user's, one without."""
    lines = []
    for name, key in (("house", "house"), ("guarded", "no-such-key")):
        lines += [
            f"- model_id: {name}",
            f"  model_name: {MODEL}",
            f"  api_base: http://127.0.0.1:{port}/v1",
            f"  api_key_name: {key}",
        ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "extra-openai-models.yaml").write_text(extra_models(port))
    (folder / "keys.json").write_text(json.dumps({"house": KEY}))
    environment = {
        **os.environ,
        "UIA_LAB_SERVE_TOKEN": KEY,
        "UIA_STORE_PATH": str(folder / "uia.sqlite3"),
        "UIA_ENABLE_CLI_BACKENDS": "True",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "LLM_USER_PATH": str(folder),
        "HOME": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "uia_lab", "serve", "--port", str(port)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline().startswith("uia_lab serves at")
        yield Served(process, f"http://127.0.0.1:{port}/")
        process.terminate()
        assert process.wait(30) == 0


def test_it_is_found_with_its_version_and_its_models(served):
    wanted = {"llm-cli", "llm-cli/house", "llm-cli/guarded"}
    deadline = time.monotonic() + 100
    while True:
        report = json.loads(served.ask("GET", "backends")[1])
        tools = {item["provider"]: item for item in report["found"] if item["type"] == "cli"}
        listed = {name for item in report["backends"] if item["id"] == "llm-cli" for name in item["models"]}
        # Its version comes first, and its models with a later look.
        if tools.get("llm", {}).get("usable") and listed >= wanted:
            break
        assert time.monotonic() < deadline, report["found"]
        time.sleep(0.1)
    (backend,) = [item for item in report["backends"] if item["id"] == "llm-cli"]
    assert backend["status"] == "healthy"
    assert backend["reason"].startswith("llm, version")


def test_a_circle_through_the_whole_house(served):
    served.add("story", {})
    status, body = served.chat("story/house", stream=True)
    assert status == 200, body
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", body
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert len([delta for delta in deltas if delta]) > 1, "it streams through both of them"
    _, plain = served.chat(MODEL, max_tokens=16, temperature=0)
    expected = json.loads(plain)["choices"][0]["message"]["content"]
    assert "".join(deltas).strip() == expected.strip()
    logged = json.loads(served.ask("GET", "requests?limit=10")[1])["requests"]
    through = [item for item in logged if item["backend_id"] == "story"]
    assert [item["outcome"] for item in through] == ["ok"]
    inner = [item for item in logged if item["model"] == MODEL]
    assert len(inner) == 2
    assert {item["outcome"] for item in inner} == {"ok"}
    assert served.children() == []


def test_with_the_key_of_the_call_the_circle_is_refused(served):
    served.add("round", {"OPENAI_API_KEY": "{key}"})
    status, body = served.chat("round/guarded")
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (502, "backend_failed")
    assert "Error code: 508" in error["message"]
    assert "a backend here leads back" in error["message"]
    assert "exit status 1" in error["message"]
    logged = json.loads(served.ask("GET", "requests?limit=20")[1])["requests"]
    guests = [item for item in logged if item["principal"].startswith("cli:")]
    assert guests
    assert {(item["outcome"], item["error"]) for item in guests} == {("rejected", "loop_detected")}
    # The key ended with the call; what the tool had was never the server's own.
    assert KEY not in body
    assert served.children() == []


def test_without_a_key_it_says_so_itself(served):
    served.add("keyless", {})
    status, body = served.chat("keyless/guarded")
    assert status == 502
    assert "No key found" in body


def test_a_caller_that_leaves_takes_it_along(served):
    options = {"tool": "llm", "arguments": ["-o", "max_tokens", "2000"]}
    status, _ = served.ask("POST", "backends", {"type": "cli", "id": "long", "options": options})
    assert status == 201
    body = json.dumps(
        {"model": "long/house", "messages": [{"role": "user", "content": "Count."}], "stream": True}
    )
    with socket.create_connection(("127.0.0.1", int(served.url.split(":")[-1].strip("/"))), 60) as link:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        while b"content" not in link.recv(65536):
            pass
        assert served.children()
    deadline = time.monotonic() + 20
    while served.children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
