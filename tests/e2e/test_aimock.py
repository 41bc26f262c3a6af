"""A mock of several providers that others wrote, asked by the adapter in each dialect; with chaos on, too."""

import asyncio
import collections
import contextlib
import json
import shutil
import socket
import subprocess
import time

import pytest

from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secrets
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.audio import Audio
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import InferenceError, NoBackendAvailable
from uia_lab.domain.events import Reasoning, Text, ToolCall
from uia_lab.domain.requests import InferenceRequest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("npm") is None, reason="aimock is a package of npm's"),
]

PACKAGE = "@copilotkit/aimock@1.43.0"
DIALECTS = ("openai", "anthropic", "openai-responses")
SAID = "Hello! Grüße from a mock that says a little more than one word."
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
FIXTURES = [
    {"match": {"endpoint": "image", "userMessage": "a cat"}, "response": {"image": {"b64Json": "aGk="}}},
    {"match": {"endpoint": "transcription"}, "response": {"transcription": {"text": "so it is"}}},
    {"match": {"userMessage": "hello"}, "response": {"content": SAID}},
    {"match": {"userMessage": "think"}, "response": {"content": "So be it.", "reasoning": "Let me think."}},
    {
        "match": {"userMessage": "rain"},
        "response": {
            "toolCalls": [
                {"name": "weather", "arguments": {"city": "Riga"}},
                {"name": "weather", "arguments": {"city": "Oslo"}},
            ]
        },
    },
    {
        "match": {"userMessage": "overload"},
        "response": {"error": {"message": "Overloaded", "type": "overloaded_error"}, "status": 529},
    },
]
CHAOS = "--chaos-drop=0.1 --chaos-malformed=0.15 --chaos-disconnect=0.15 --chaos-ratelimit=0.1 --latency=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aimock")
    subprocess.run(
        ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(folder), PACKAGE],
        check=True,
        capture_output=True,
        timeout=110,
    )
    (folder / "fixtures").mkdir()
    (folder / "fixtures" / "all.json").write_text(json.dumps({"fixtures": FIXTURES}))
    return folder


@pytest.fixture
def mock(folder):
    """Starts the mock with options; gives its address."""
    with contextlib.ExitStack() as stack:

        def start(*options):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [str(folder / "node_modules" / ".bin" / "llmock"), "-p", str(port)]
            process = stack.enter_context(
                subprocess.Popen([*command, "-f", str(folder / "fixtures"), "--log-level=silent", *options])
            )
            stack.callback(process.terminate)
            deadline = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return f"http://127.0.0.1:{port}/v1"
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)

        yield start


@pytest.fixture
async def build():
    factory = BackendFactory(Secrets(environ={"MOCK_KEY": "sk-test"}), EndpointPolicy(), "uia-me")

    async def build(endpoint, dialect, **fields):
        backend = factory.build(
            BackendDescription(
                id="mock", type="api", endpoint=endpoint, dialect=dialect, api_key_env="MOCK_KEY", **fields
            )
        )
        await backend.start()
        return backend

    yield build
    await factory.close()


async def ask(backend, text):
    messages = [{"role": "user", "content": text}]
    request = InferenceRequest(
        "text-generation", "gpt-5", messages=messages, parameters={"tools": TOOLS}, stream=True
    )
    async with asyncio.timeout(60):
        return [event async for event in backend.infer(request)]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_what_is_said_thought_and_called(mock, build, dialect):
    backend = await build(mock(), dialect)
    _, *chunks, end = await ask(backend, "hello")
    assert "".join(chunk.delta.text for chunk in chunks) == end.result == SAID
    assert end.finish_reason == "stop"
    deltas = [event.delta for event in (await ask(backend, "think"))[1:-1]]
    assert "".join(delta.text for delta in deltas if isinstance(delta, Reasoning)) == "Let me think."
    assert "".join(delta.text for delta in deltas if isinstance(delta, Text)) == "So be it."
    _, *chunks, end = await ask(backend, "rain")
    calls = collections.defaultdict(str)
    for chunk in chunks:
        if isinstance(chunk.delta, ToolCall):
            calls[chunk.delta.index] += chunk.delta.arguments
    assert [json.loads(calls[index])["city"] for index in (0, 1)] == ["Riga", "Oslo"]
    assert end.finish_reason == "tool_calls"
    with pytest.raises(NoBackendAvailable, match="Overloaded"):
        await ask(backend, "overload")


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_under_chaos_every_answer_is_whole_or_a_typed_error(mock, build, dialect):
    backend = await build(mock(*CHAOS.split()), dialect)
    whole = failed = 0
    for _ in range(60):
        try:
            events = await ask(backend, "hello")
        except InferenceError:
            failed += 1
        else:
            assert events[-1].result == SAID
            whole += 1
    assert whole
    assert failed


async def test_images_and_transcripts(mock, build):
    backend = await build(mock(), "openai", tasks=("image-generation", "audio-transcription"))
    painted = InferenceRequest("image-generation", "dall-e-3", inputs="a cat")
    assert [event async for event in backend.infer(painted)][-1].result[0]["b64_json"] == "aGk="
    heard = InferenceRequest(
        "audio-transcription", "whisper-1", inputs=Audio(b"RIFF" * 100, "a.wav", "audio/wav")
    )
    assert [event async for event in backend.infer(heard)][-1].result == "so it is"
