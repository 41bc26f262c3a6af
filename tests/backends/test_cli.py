"""Tools as backends, over a fake one that misbehaves in every way we could think of."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from tests.backends.conftest import KEY, chat
from uia_lab.access.keys import KeyRing
from uia_lab.access.secrets import Secrets
from uia_lab.backends.cli.backend import MAX_ARGUMENT
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.process import MARK, ToolProcess
from uia_lab.backends.cli.surroundings import House
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    Cancelled,
    ContextTooLong,
    StreamInterrupted,
    Unsupported,
)
from uia_lab.domain.events import Chunk, Finished, Started
from uia_lab.domain.requests import InferenceRequest
from uia_lab.inference_backend_manager import BackendManager

FAKE = str(Path(__file__).parents[1] / "upstreams" / "fake_cli.py")
EVENTS = {"dialect": "claude"}


class Fake:
    """A backend over one behaviour of the fake tool, in a manager."""

    def __init__(self, manager, token, keys):
        self.manager, self.token, self.keys = manager, token, keys
        self.maker = CliMaker(
            Secrets(environ={"MY_KEY": KEY}), House("uia-me", keys, lambda: "http://127.0.0.1:1/")
        )

    async def add(self, behaviour, *arguments, options=None, **fields):
        command = [sys.executable, FAKE, behaviour, self.token, *arguments]
        description = await self.maker.complete(
            BackendDescription(id="it", type="cli", options={"command": command, **(options or {})}, **fields)
        )
        self.backend = self.maker.build(description)
        self.manager.register_backend(
            "it", "cli", "It", self.backend, max_concurrency=description.max_concurrency
        )
        return await self.manager.probe("it")

    async def run(self, behaviour, *arguments, text="hi", options=None, **fields):
        await self.add(behaviour, *arguments, options=options, **fields)
        return await self.ask(text)

    async def ask(self, text="hi", model="it", **more):
        return await self.manager.infer("chat", model, messages=[{"role": "user", "content": text}], **more)

    def left(self):
        """Processes that carry the token, wherever they went."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and self.token in process.cmdline():
                    found.append(process)
        return found

    async def until(self, count, seconds=20.0):
        async with asyncio.timeout(seconds):
            while len(self.left()) != count:
                await asyncio.sleep(0.02)


@pytest.fixture
async def fake(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    manager = BackendManager({"enable_health_checks": False})
    made = Fake(manager, f"token-{uuid.uuid4().hex}", KeyRing())
    yield made
    await manager.aclose()
    await made.maker.close()
    # Whatever happened: no process, no folder and no key is left.
    assert made.left() == []
    assert list(tmp_path.iterdir()) == []
    assert len(made.keys) == 0


async def test_text_comes_as_it_is_printed(fake):
    await fake.add("echo")
    async with fake.manager.stream("chat", "it", messages=[{"role": "user", "content": "a b c"}]) as stream:
        events = [event async for event in stream]
    assert isinstance(events[0], Started)
    assert "".join(event.delta.text for event in events[1:-1]) == "a b c "
    assert isinstance(events[-1], Finished)
    assert events[-1].result == "a b c "
    assert events[-1].usage.estimated


async def test_it_is_external_and_found_healthy_by_a_probe_alone(fake):
    info = await fake.add("echo")
    assert info.status is BackendStatus.HEALTHY
    assert info.models == {"it", "it/*"}
    assert info.max_concurrency == 1
    assert info.capabilities.side_effects
    assert info.capabilities.external
    assert fake.manager.explain("text-generation").winner is None
    assert fake.manager.explain("text-generation", "it/any").winner == "it"


async def test_a_letter_may_come_in_halves(fake):
    assert (await fake.run("split")).text == "Grüße 🎈"


async def test_what_is_no_utf8_is_shown_as_such(fake):
    assert (await fake.run("bad")).text == "caf� �!"


async def test_a_prompt_that_nobody_reads_stops_nothing(fake):
    assert (await fake.run("deaf", text="x" * 4_000_000)).text == "did not listen"


async def test_events_in_pieces_give_text_and_usage(fake):
    result = await fake.run("events", **EVENTS)
    assert result.text == "Grüße, everybody"
    assert (result.usage.input_tokens, result.usage.output_tokens) == (7, 3)
    assert result.usage.cached_tokens == 2
    assert not result.usage.estimated


async def test_the_event_that_says_it_was_whole_counts_more_than_the_exit_status(fake):
    assert (await fake.run("events_exit1", **EVENTS)).text == "Grüße, everybody"


async def test_a_tool_that_does_not_leave_after_its_answer_is_ended(fake):
    assert (await fake.run("events_linger", **EVENTS)).text == "Grüße, everybody"
    assert fake.left() == []


async def test_a_text_that_comes_with_the_last_event_alone(fake):
    assert (await fake.run("events_whole", **EVENTS)).text == "at once"


@pytest.mark.parametrize(
    ("behaviour", "fields", "error", "said"),
    [
        ("silent", {}, BackendFailed, r"gave no text \(exit status 0\): nobody is logged in$"),
        (
            "error0",
            {"options": {"errors": ["Error:"]}},
            BackendFailed,
            "Error: the account has no credit left$",
        ),
        ("late", {}, StreamInterrupted, r"failed \(exit status 1\): then it broke"),
        ("events_cut", EVENTS, StreamInterrupted, "without saying that its answer was whole"),
        ("events_empty", EVENTS, BackendFailed, "gave no text"),
        ("events_error", EVENTS, StreamInterrupted, "the model is gone"),
        (
            "events_api_error",
            {**EVENTS, "options": {"errors": ["[API Error:"]}},
            BackendFailed,
            r"\[API Error: 404 no such model\]$",
        ),
        ("huge_line", EVENTS, BackendFailed, "a line of more than 8 MiB"),
    ],
)
async def test_what_went_wrong_is_said(fake, behaviour, fields, error, said):
    with pytest.raises(error, match=said):
        await fake.run(behaviour, **fields)
    report = fake.manager.get_backend("it").metrics
    assert (report.failed_requests, report.total_requests) == (1, 1)


async def test_an_endless_answer_is_cut(fake):
    with pytest.raises(StreamInterrupted, match="printed more than 32 MiB"):
        await fake.run("huge")


async def test_much_that_is_printed_as_errors_stops_nothing(fake):
    assert (await fake.run("chatty")).text == "said it"


async def test_errors_show_no_secrets(fake):
    with pytest.raises(BackendFailed, match="cannot go on with <key> and <key>"):
        await fake.run("fails", api_key_env="MY_KEY")


def ignores_sigterm(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("behaviour", ["hang", "mute", "stubborn", "family"])
async def test_a_cancelled_call_takes_everything_with_it_within_a_second(fake, behaviour):
    await fake.add(behaviour)
    asking = asyncio.create_task(fake.ask())
    await fake.until(3 if behaviour == "family" else 1)
    if behaviour == "family":
        async with asyncio.timeout(20):
            while not all(ignores_sigterm(process) for process in fake.left()):
                await asyncio.sleep(0.01)
    (running,) = fake.manager.running
    began = time.monotonic()
    fake.manager.cancel(running)
    with pytest.raises(Cancelled):
        await asking
    took = time.monotonic() - began
    assert fake.left() == []
    assert took < 10.0


async def test_what_outlives_a_good_answer_is_ended(fake):
    assert (await fake.run("orphans")).text.startswith("well")
    assert fake.left() == []


async def test_a_caller_that_leaves_ends_it(fake):
    await fake.add("hang")
    async with fake.manager.stream("chat", "it", inputs="hi") as stream:
        async for event in stream:
            if isinstance(event, Chunk):
                break
    assert fake.left() == []


async def test_a_deadline_ends_it(fake):
    await fake.add("mute")
    with pytest.raises(Exception, match="deadline"):
        await fake.ask(deadline_s=0.5)
    assert fake.left() == []


async def test_a_backend_that_is_taken_out_ends_its_calls(fake):
    await fake.add("stubborn")
    asking = asyncio.create_task(fake.ask())
    await fake.until(1)
    fake.manager.unregister_backend("it")
    with pytest.raises((StreamInterrupted, BackendFailed), match="stopped"):
        await asking


async def test_one_call_at_a_time(fake):
    await fake.add("hang")
    first = asyncio.create_task(fake.ask())
    await fake.until(1)
    second = asyncio.create_task(fake.ask())
    async with asyncio.timeout(20):
        while not fake.manager.waiting:
            await asyncio.sleep(0.01)
    assert len(fake.left()) == 1
    for request in list(fake.manager.running):
        fake.manager.cancel(request)
    for task in (first, second):
        with pytest.raises(Cancelled):
            await task


async def test_what_has_started_is_never_tried_elsewhere(fake):
    await fake.add("silent", models=("shared",))
    asked = []
    fake.manager.register_backend(
        "other", "cli", "Other", lambda inputs: asked.append(inputs) or "well", fake.backend.capabilities
    )
    for _ in range(8):
        with contextlib.suppress(BackendFailed):
            await fake.manager.infer("chat", "shared", "hi")
    report = fake.manager.get_backend_status_report()
    failed = fake.manager.get_backend("it").metrics.failed_requests
    # Each that failed was a request that failed: nobody else got it.
    assert report["total_failed"] == failed > 0
    assert report["total_successful"] == len(asked) == 8 - failed


async def test_what_it_finds_around_it(fake, monkeypatch):
    for name, value in {
        "UIA_LAB_TOKEN": "uia-the-kernels-own",
        "OPENAI_API_KEY": "sk-somebody-elses",
        "AWS_SECRET_ACCESS_KEY": "aws",
        "JUPYTER_TOKEN": "jupyter",
        "DATABASE_URL": "postgres://",
        "USER_DATABASE": "postgres://",
        "LANGFUSE_AUTH": "basic",
    }.items():
        monkeypatch.setenv(name, value)
    options = {
        "environment": {"HOUSE_KEY": "{key}", "HOUSE": "{url}v1", "PLAIN": "as {it} is", "WHO": "{model}"}
    }
    result = await fake.run("environment", "{folder}", "{nothing}", options=options, api_key_env="MY_KEY")
    found = json.loads(result.text)
    given = found["environment"]
    assert not {"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "JUPYTER_TOKEN", "DATABASE_URL"} & given.keys()
    assert not {"USER_DATABASE", "LANGFUSE_AUTH"} & given.keys()
    assert given["MY_KEY"] == KEY
    assert given["UIA_LAB_TOKEN"] not in ("", "uia-the-kernels-own")
    assert given["HOUSE_KEY"] == given["UIA_LAB_TOKEN"]
    assert given["UIA_LAB_URL"] == "http://127.0.0.1:1/"
    assert given["HOUSE"] == "http://127.0.0.1:1/v1"
    assert given["UIA_LAB_VIA"] == "uia-me"
    assert given["PLAIN"] == "as {it} is"
    assert given["NO_COLOR"] == "1"
    assert given["HOME"] == os.environ["HOME"]
    assert found["folder"] != str(Path.cwd())
    assert found["arguments"] == [found["folder"], "{nothing}"]
    # The key ended with the call.
    assert fake.keys.verify(given["UIA_LAB_TOKEN"]) is None


async def test_a_tool_that_is_lent_to_a_peer_finds_no_way_into_the_house(fake):
    await fake.add("environment", options={"environment": {"HOUSE_KEY": "{key}"}})
    request = InferenceRequest("chat", "it", "hi", principal="peer:somebody", lent=frozenset({"it"}))
    given = json.loads((await fake.manager.run(request)).text)["environment"]
    assert not {"UIA_LAB_TOKEN", "UIA_LAB_URL"} & given.keys()
    assert given["UIA_LAB_VIA"] == "uia-me"


async def test_a_model_is_a_name_and_never_an_option(fake):
    options = {"command": [sys.executable, FAKE, "environment", fake.token, "{model}"]}
    await fake.add("environment", options=options)
    told = json.loads((await fake.ask(model="it/org/model:1b")).text)
    assert told["arguments"] == ["org/model:1b"]
    for name in ("it/--yolo", "it/-x", "it/a b", "it/a\nb"):
        with pytest.raises(BadRequest, match="no name of a model"):
            await fake.ask(model=name)
    with pytest.raises(BadRequest, match="has no default model"):
        await fake.ask(model="it")


async def test_a_prompt_in_the_command_is_never_an_option(fake):
    options = {"command": [sys.executable, FAKE, "environment", fake.token, "--prompt={prompt}", "{prompt}"]}
    await fake.add("environment", options=options)
    told = json.loads((await fake.ask("--config=/etc/shadow")).text)
    assert told["arguments"] == ["--prompt=--config=/etc/shadow", " --config=/etc/shadow"]


async def test_a_prompt_in_the_command_stays_one_argument(fake):
    options = {"command": [sys.executable, FAKE, "environment", fake.token, "--prompt={prompt}"]}
    await fake.add("environment", options=options)
    prompt = '{model} "quoted"; $(rm) --yolo'
    assert json.loads((await fake.ask(prompt)).text)["arguments"] == [f"--prompt={prompt}"]
    with pytest.raises(ContextTooLong, match="as an argument"):
        await fake.ask("x" * (MAX_ARGUMENT + 1))
    with pytest.raises(BadRequest, match="null character"):
        await fake.ask("a\0b")


async def test_several_messages_become_a_transcript(fake):
    await fake.add("echo")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    result = await fake.manager.infer("chat", "it", messages=messages, parameters={"temperature": 0.5})
    assert result.text.strip() == "Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: Bye\n\nAssistant:"


@pytest.mark.parametrize(
    ("parameters", "name"), [({"n": 2}, "n"), ({"stop": ["x"]}, "stop"), ({"echo": True}, "echo")]
)
async def test_what_changes_the_form_of_an_answer_is_refused(fake, parameters, name):
    await fake.add("echo")
    with pytest.raises(Unsupported) as caught:
        await fake.manager.infer("chat", "it", "hi", parameters)
    assert caught.value.param == name
    assert fake.manager.get_backend("it").status is BackendStatus.HEALTHY


async def test_tools_and_pictures_are_refused_before_it_runs(fake):
    await fake.add("echo")
    with pytest.raises(Unsupported):
        await fake.manager.infer("chat", "it", "hi", {"tools": [{"type": "function"}]})
    assert fake.manager.get_backend("it").metrics.total_requests == 0


async def test_a_program_that_is_gone_is_offline(fake, tmp_path):
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\necho well\n")
    program.chmod(0o755)
    await fake.add("", options={"command": [str(program)]})
    assert (await fake.ask()).text == "well"
    program.unlink()
    info = await fake.manager.probe("it")
    assert info.status is BackendStatus.OFFLINE
    assert "gone" in info.reason


async def test_a_relative_that_is_told_apart_by_its_events(fake):
    """The adapter alone: its generator closed in the middle leaves nothing."""
    await fake.add("stubborn")
    stream = fake.backend.infer(chat())
    async for event in stream:
        if isinstance(event, Chunk):
            break
    await stream.aclose()
    assert fake.left() == []


async def test_a_tool_that_takes_its_time_is_not_taken_for_one_that_is_gone(
    tmp_path, local_manager, monkeypatch
):
    monkeypatch.setattr("uia_lab.backends.cli.backend.LOOK_S", 0.2)
    gate = tmp_path / "gate"
    program = tmp_path / "llm"
    program.write_text(
        f"#!/bin/sh\n[ $1 = prompt ] && exec echo well\nuntil [ -e {gate}-$1 ]; do sleep 0.05; done\n"
        '[ $1 = models ] && echo "OpenAI Chat: house" || echo llm, version 1.0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    maker = CliMaker(Secrets(environ={}), House("uia-me"))
    backend = maker.build(BackendDescription(id="it", type="cli", options={"tool": "llm"}))
    local_manager.register_backend("it", "cli", "It", backend)
    info = await local_manager.probe("it")
    assert (info.status, info.reason) == (BackendStatus.INITIALIZING, "was asked for its version")
    Path(f"{gate}---version").touch()
    async with asyncio.timeout(20):
        while (info := await local_manager.probe("it")).status is BackendStatus.INITIALIZING:
            pass
    assert (info.status, info.models) == (BackendStatus.HEALTHY, {"it", "it/*"})
    assert (await local_manager.infer("chat", "it/any", "x")).text == "well"
    Path(f"{gate}-models").touch()
    async with asyncio.timeout(20):
        while (info := await local_manager.probe("it")).models != {"it", "it/house"}:
            pass
    await local_manager.aclose()
    await maker.close()


async def test_a_caller_that_leaves_while_it_begins_leaves_nothing(fake):
    await fake.add("stubborn")
    for steps in range(12):
        stream = fake.backend.infer(chat())
        asking = asyncio.ensure_future(_all(stream))
        for _ in range(steps):
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert fake.left() == []


async def _all(stream):
    async with contextlib.aclosing(stream):
        return [event async for event in stream]


async def test_a_start_that_is_interrupted_twice_is_ended_all_the_same(monkeypatch, tmp_path):
    ending, may, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    real = ToolProcess.end

    async def slow(self):
        ending.set()
        await may.wait()
        await real(self)
        ended.set()

    monkeypatch.setattr(ToolProcess, "end", slow)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    starting = asyncio.create_task(ToolProcess.start(command, {MARK: uuid.uuid4().hex}, tmp_path))
    await asyncio.sleep(0)
    starting.cancel()
    async with asyncio.timeout(20):
        await ending.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        may.set()
        await ended.wait()
