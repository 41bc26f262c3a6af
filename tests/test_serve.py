"""``python -m uia_lab serve`` as a process: it answers, and nothing survives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

KEY = "uia-test-key-0123456789"


class Served:
    def __init__(self, process, url):
        self.process, self.url = process, url

    def curl(self, path, body=None, key=KEY, *options):
        command = ["curl", "-sS", "-m", "100", *options, f"{self.url}{path}"]
        if key:
            command += ["-H", f"Authorization: Bearer {key}"]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=110).stdout

    def workers(self):
        return psutil.Process(self.process.pid).children(recursive=True)


def environment():
    return {**os.environ, "UIA_LAB_SERVE_TOKEN": KEY}


@pytest.fixture
def served(models):
    process = subprocess.Popen(
        [sys.executable, "-m", "uia_lab", "serve", "--port", "0"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        line = process.stdout.readline()
        assert line.startswith("uia_lab serves at http://127.0.0.1:"), line
        yield Served(process, line.split()[-1].removesuffix("v1"))
        process.kill()


CHAT = {
    "model": "SmolLM2-135M-Instruct",
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "stream": True,
    "max_tokens": 24,
    "temperature": 0,
}


def test_curl_gets_a_streamed_answer_of_the_real_model(served):
    text = served.curl("v1/chat/completions", CHAT, KEY, "-N")
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert len([delta for delta in deltas if delta]) >= 10
    assert "".join(deltas).strip()


def test_nothing_of_jupyter_is_there(served):
    for path in ("api/kernels", "api/contents", "api/terminals", "tree"):
        assert served.curl(path, None, KEY, "-o", "/dev/null", "-w", "%{http_code}") == "404"


def test_without_a_key_nothing_is_open_but_health(served):
    answer = json.loads(served.curl("v1/models", None, None))
    assert answer["error"]["code"] == "invalid_api_key"
    assert served.curl("health", None, None, "-o", "/dev/null", "-w", "%{http_code}") == "200"


def start_streaming(served):
    """A client in the middle of a long answer, and the worker that gives it."""
    client = subprocess.Popen(
        ["curl", "-sSN", "-m", "100", f"{served.url}v1/chat/completions",
         "-H", f"Authorization: Bearer {KEY}", "-d", json.dumps({**CHAT, "max_tokens": 1500})],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while b'"content"' not in client.stdout.readline():
        assert client.poll() is None
    workers = served.workers()
    assert workers, "the model runs in a process of its own"
    return client, workers


def test_sigterm_ends_it_and_its_worker_within_five_seconds(served):
    client, workers = start_streaming(served)
    with client:
        before = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(50) == 0
        seconds = time.monotonic() - before
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert not alive
        assert seconds < 50, "ten times the five seconds promised: this machine may be busy"
        client.kill()


def test_sigkill_leaves_no_worker_behind(served):
    client, workers = start_streaming(served)
    with client:
        served.process.kill()
        served.process.wait(10)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
        client.kill()


def test_a_port_in_use_names_the_setting():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "uia_lab", "serve", "--port", str(port)],
            env=environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "hf_server_port" in done.stderr
    assert str(port) in done.stderr


@pytest.mark.parametrize("arguments", [["serve", "--token", "short"], ["serve", "--port", "99999"]])
def test_bad_arguments_are_said_in_one_line(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "uia_lab", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_key_is_made_and_shown_where_none_or_an_empty_one_is_given():
    with subprocess.Popen(
        [sys.executable, "-m", "uia_lab", "serve", "--port", "0"],
        env={**os.environ, "UIA_LAB_SERVE_TOKEN": ""},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        url = process.stdout.readline().split()[-1].removesuffix("v1")
        shown = process.stdout.readline()
        try:
            assert shown.startswith("key, shown this once: uia-")
            answer = Served(process, url).curl("v1/models", None, shown.split()[-1])
            assert json.loads(answer)["object"] == "list"
        finally:
            process.terminate()


def test_models_are_listed(models):
    done = subprocess.run(
        [sys.executable, "-m", "uia_lab", "models", "list"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "SmolLM2-135M-Instruct: text-generation, in the cache" in done.stdout
    assert "all-MiniLM-L6-v2: text-embedding, in the cache" in done.stdout


def keys(*arguments, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "uia_lab", "keys", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_keys_of_the_command_line_open_a_server_that_runs_until_they_are_revoked(served):
    secret = keys("create", "my script", "--model", "SmolLM2*", "--requests-per-minute", "100").split()[-1]
    assert "SmolLM2*" in (listed := keys("list"))
    assert secret not in listed

    def status():
        return served.curl("v1/models", None, secret, "-o", "/dev/null", "-w", "%{http_code}")

    def until(wanted):
        deadline = time.monotonic() + 30
        while status() != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    until("200")
    names = [item["id"] for item in json.loads(served.curl("v1/models", None, secret))["data"]]
    assert names == ["SmolLM2-135M-Instruct"]
    assert "already" in keys("create", "my script", status=2)
    assert "Did you mean 'my script'" in keys("revoke", "my scrip", status=2)
    assert "within a second" in keys("revoke", "my script")
    until("401")
    assert "whole number" in keys("create", "x", "--token-budget", "0", status=2)
