"""Real command-line tools from npm, driven as backends against our own doors and a mock of Gemini."""

import contextlib
import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.node import NODE, NPM
from tests.upstreams.uia_server import KEY, uia_servers
from uia_lab.backends.cli.tools import TOOLS
from uia_lab.domain.backends import BackendCapabilities, BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAID = "Hello there, Grüße from the house."
MOCK = "@copilotkit/aimock@1.43.0"
GEMINI_MODEL = "gemini-2.5-flash"
CODEX = 'model_providers.house={name="house",base_url="{url}v1",env_key="HOUSE_API_KEY",wire_api="responses"'


@dataclass(frozen=True)
class Real:
    """One tool, where it comes from, and how it is told to ask the house."""

    package: str
    environment: dict = field(default_factory=dict)
    arguments: tuple = ()
    files: dict = field(default_factory=dict)
    model: str = "said"
    finish: tuple = ()


REAL = {
    "codex": Real(
        "@openai/codex@0.169.0",
        {"HOUSE_API_KEY": "{key}", "CODEX_HOME": "{home}"},
        ("-c", "model_provider=house", "-c", f"{CODEX},request_max_retries=0,stream_max_retries=0}}"),
    ),
    "qwen": Real(
        "@qwen-code/qwen-code@0.24.4",
        {"OPENAI_API_KEY": "{key}", "OPENAI_BASE_URL": "{url}v1"},
        ("--auth-type", "openai"),
    ),
    "claude": Real(
        "@anthropic-ai/claude-code@2.1.331",
        {"ANTHROPIC_API_KEY": "{key}", "ANTHROPIC_BASE_URL": "{url}", "CLAUDE_CONFIG_DIR": "{home}"},
        finish=("@anthropic-ai/claude-code", "install.cjs"),
    ),
    "copilot": Real(
        "@github/copilot@1.0.102",
        {
            "COPILOT_OFFLINE": "true",
            "COPILOT_PROVIDER_BASE_URL": "{url}v1",
            "COPILOT_PROVIDER_API_KEY": "{key}",
        },
    ),
    "opencode": Real(
        "opencode-ai@1.18.33",
        {"HOUSE_API_KEY": "{key}", "HOUSE": "{url}v1"},
        files={
            ".config/opencode/opencode.json": {
                "provider": {
                    "house": {
                        "npm": "@ai-sdk/openai-compatible",
                        "name": "House",
                        "options": {"baseURL": "{env:HOUSE}", "apiKey": "{env:HOUSE_API_KEY}"},
                        "models": {"said": {"name": "Said"}},
                    }
                }
            }
        },
        model="house/said",
    ),
    "gemini": Real(
        "@google/gemini-cli@0.61.0",
        {"GEMINI_API_KEY": "{key}", "GOOGLE_GEMINI_BASE_URL": "{mock}"},
        files={".gemini/settings.json": {"security": {"auth": {"selectedType": "gemini-api-key"}}}},
        model=GEMINI_MODEL,
    ),
}


def install(folder, package):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"name": "tools", "version": "1.0.0"}')
    command = [*NPM, "install", "--no-fund", "--no-audit", "--prefix", str(folder), package]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Installs a tool once, and gives the folder of its program."""
    root, done = tmp_path_factory.mktemp("tools"), {}

    def installed(name):
        if name not in done:
            modules = install(root / name, REAL[name].package)
            if REAL[name].finish:
                package, script = REAL[name].finish
                subprocess.run([NODE, script], cwd=modules / package, check=True, timeout=100)
            done[name] = modules / ".bin"
        return done[name]

    return installed


@pytest.fixture(scope="module")
def mock(tmp_path_factory):
    """A server that speaks Gemini's dialect."""
    folder = tmp_path_factory.mktemp("mock")
    program = install(folder, MOCK) / ".bin" / "llmock"
    (folder / "fixtures").mkdir()
    answer = {"match": {"userMessage": "hello"}, "response": {"content": SAID}}
    (folder / "fixtures" / "all.json").write_text(json.dumps({"fixtures": [answer]}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [NODE, str(program), "-p", str(port), "-f", str(folder / "fixtures"), "--log-level=silent"]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
async def house(monkeypatch, installed, request, tmp_path):
    """A server with the tools on its PATH and, to be asked by them, a backend that says one sentence."""
    monkeypatch.setenv("UIA_ENABLE_CLI_BACKENDS", "True")
    name = request.getfixturevalue("name")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(installed(name)), str(Path(NODE).parent), "/usr/bin", "/bin"])
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, content in REAL[name].files.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps(content))
    async with uia_servers() as make:
        server = await make()
        server.service.door_url = server.url

        async def said():
            for word in SAID.split(" "):
                yield f" {word}" if word != "Hello" else word

        can = BackendCapabilities(
            {"text-generation"},
            {"said"},
            supports_streaming=True,
            features={"tools", "response_format", "vision"},
            external=False,
        )
        server.manager.register_backend("said", "gpu", "Said", said, can)
        await server.manager.probe("said")
        yield server


def described(name, monkeypatch, key=None, mock=""):
    """The tool as somebody adds it who wants it to ask this house, with a key of theirs or of its call."""
    real = REAL[name]
    # What is known before the call; {url} and {key} are for the backend to fill in.
    known = {"{home}": os.environ["HOME"], "{mock}": mock}
    environment = {variable: known.get(value, value) for variable, value in real.environment.items()}
    (secret,) = [variable for variable, value in environment.items() if value == "{key}"]
    if key is not None:
        # As it would be in the server's environment.
        monkeypatch.setenv(secret, key)
        del environment[secret]
    return BackendDescription(
        id="tool",
        type="cli",
        api_key_env=None if key is None or secret in TOOLS[name].keys else secret,
        options={"tool": name, "arguments": list(real.arguments), "environment": environment},
    )


@pytest.mark.parametrize("name", REAL)
async def test_it_answers_through_the_house(name, house, request, monkeypatch):
    mock = request.getfixturevalue("mock") if name == "gemini" else ""
    await house.service.backends.add(described(name, monkeypatch, KEY, mock))
    info = await house.manager.probe("tool")
    assert info.status is BackendStatus.HEALTHY, info.reason
    result = await house.manager.infer(
        "chat", f"tool/{REAL[name].model}", messages=[{"role": "user", "content": "Please say hello to me."}]
    )
    assert result.text.strip() == SAID
    assert result.backend_id == "tool"
    assert TOOLS[name].verified
    if TOOLS[name].streams:
        assert len(result.chunks) > 1


# Others repeat themselves for minutes before they give up.
@pytest.mark.parametrize("name", ["codex"])
async def test_with_the_key_of_its_call_it_is_refused(name, house, monkeypatch):
    await house.service.backends.add(described(name, monkeypatch))
    await house.manager.probe("tool")
    with pytest.raises(BackendFailed) as caught:
        await house.manager.infer(
            "chat", f"tool/{REAL[name].model}", inputs="Please say hello to me.", deadline_s=120
        )
    assert "leads back" in caught.value.message or "508" in caught.value.message
    report = house.manager.get_backend_status_report()
    assert report["total_rejected"] >= 1
    assert house.manager.get_backend("said").metrics.total_requests == 0


@pytest.mark.parametrize("name", ["codex", "qwen"])
async def test_a_model_that_is_not_there_is_said(name, house, monkeypatch):
    await house.service.backends.add(described(name, monkeypatch, KEY))
    await house.manager.probe("tool")
    with pytest.raises(BackendFailed, match="'no-such' is not served here"):
        await house.manager.infer("chat", "tool/no-such", inputs="Please say hello to me.")
