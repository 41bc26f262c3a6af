"""The table of tools, what a description may say, and what a tool is told for nothing."""

import re
import sys
from pathlib import Path

import pytest

from uia_lab.access.secrets import Secrets
from uia_lab.backends.cli.formats import FORMATS, TEXT
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.outputs import EventOutput, at, fits
from uia_lab.backends.cli.programs import Programs, require_trusted
from uia_lab.backends.cli.surroundings import House
from uia_lab.backends.cli.tools import TOOLS, Tool, tools_named
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed, BadRequest, NotAllowed

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.fixture
async def maker():
    made = CliMaker(Secrets(environ={}), House("uia-me"))
    yield made
    await made.close()


def described(**fields):
    return BackendDescription(id="it", type="cli", **fields)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_the_page_has_its_row(tool):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {tool.title} |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [
        ", ".join(f"`{name}`" for name in (tool.name, *tool.aliases)),
        f"`{tool.output}`",
        "yes" if tool.streams else "no",
        ", ".join(tool.keys) or "-",
        "yes" if tool.verified else "no",
    ]


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_it_is_sound(tool):
    assert tool.output == TEXT or tool.output in FORMATS
    assert re.compile(tool.listed).groups == 1
    assert any("{model}" in part for part in (*tool.command, *tool.model))
    assert not any("{key}" in part for part in tool.command)
    # What it may be given of the environment has its name, or its maker's.
    assert not {"UIA_LAB_TOKEN", "JUPYTER_TOKEN"} & set(tool.keys)


@pytest.mark.parametrize(
    ("name", "tools"),
    [
        ("claude_cli", ["claude"]),
        ("Gemini-CLI", ["gemini"]),
        ("openai_cli", ["codex", "llm"]),
        ("llm", ["llm"]),
    ],
)
def test_the_names_of_the_specification(name, tools):
    assert [tool.name for tool in tools_named(name)] == tools


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(BadRequest, match=r"cli_backends: 'claud' is no known tool. Did you mean 'claude'"):
        tools_named("claud")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "options.tool or options.command is needed"),
        ({"tool": "llm", "command": ["x"]}, "is needed"),
        ({"tool": "no-such"}, "no known tool"),
        ({"tool": 7}, "must be the name"),
        ({"command": "rm -rf /"}, "must be a list of strings"),
        ({"command": ["a", 7]}, "must be a list of strings"),
        ({"command": ["a\0b"]}, "must be a list of strings"),
        ({"command": []}, "must begin with a program"),
        ({"command": ["no-such-program-anywhere"]}, "not on the server's PATH"),
        ({"command": ["echo", "{key}"]}, "must not hold {key}"),
        ({"command": ["echo"], "arguments": ["-x"]}, "go with options.tool"),
        ({"command": ["echo"], "shell": True}, "options.shell is unknown"),
        ({"command": ["echo"], "streams": "no"}, "true or false"),
        ({"command": ["echo"], "environment": {"A B": "x"}}, "names of variables"),
        ({"command": ["echo"], "environment": {"A": 1}}, "names of variables"),
        ({"command": ["echo"], "environment": {"UIA_LAB_TOKEN": "x"}}, "must not set UIA_LAB_TOKEN"),
        ({"command": ["echo"], "environment": {"LD_PRELOAD": "x"}}, "must not set LD_PRELOAD"),
        ({"command": ["echo"], "environment": {"MY_API_KEY": "sk-12345"}}, "must not hold MY_API_KEY"),
    ],
)
async def test_what_a_description_may_not_say(maker, options, said):
    with pytest.raises(BadRequest, match=re.escape(said)) as caught:
        await maker.complete(described(options=options))
    assert caught.value.param.startswith("options")
    assert "sk-12345" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("dialect", "yaml"), ("tasks", ("text-embedding",))])
async def test_fields_that_do_not_fit(maker, field, value):
    with pytest.raises(BadRequest) as caught:
        await maker.complete(described(options={"command": ["echo"]}, **{field: value}))
    assert caught.value.param == field


async def test_where_tools_are_switched_off():
    maker = CliMaker(Secrets(environ={}), House("uia-me"), enabled=False)
    with pytest.raises(NotAllowed, match="enable_cli_backends"):
        await maker.complete(described(options={"tool": "llm"}))


def test_whose_description_runs_programs():
    assert not described(options={"tool": "llm"}).runs_programs
    for name in ("command", "arguments", "environment"):
        assert described(options={"tool": "llm", name: []}).runs_programs
    hybrid = BackendDescription(
        id="it", type="hybrid", options={"parts": [{"type": "cli", "options": {"command": ["x"]}}]}
    )
    assert hybrid.runs_programs


def test_paths_through_events():
    event = {"a": {"b": [{"c": "x"}, {"d": 1}, {"c": "y"}]}, "t": "stop"}
    assert at(event, "a.b.c") == ["x", "y"]
    assert at(event, "a.no.c") is None
    assert fits(event, {"t": ("stop", "length")})
    assert not fits(event, {"t": "stop", "u": True})


# As the real ones printed them (codex 0.169, gemini-cli 0.61 and goose by their references).
SPOKEN = {
    "codex": [
        '{"type":"item.completed","item":{"id":"0","type":"error","message":"Model metadata not found."}}',
        '{"type":"turn.started"}',
        '{"type":"item.completed","item":{"id":"1","type":"agent_message","text":"I look."}}',
        '{"type":"item.completed","item":{"id":"2","type":"agent_message","text":"Done."}}',
        '{"type":"turn.completed","usage":{"input_tokens":7,"cached_input_tokens":3,"output_tokens":2}}',
    ],
    "gemini": [
        '{"type":"init","session_id":"s","model":"m"}',
        '{"type":"message","role":"user","content":"the prompt"}',
        '{"type":"message","role":"assistant","content":"I look.\\n\\n","delta":true}',
        '{"type":"error","severity":"warning","message":"Loop detected"}',
        '{"type":"message","role":"assistant","content":"Done.","delta":true}',
        '{"type":"result","status":"success","stats":{"input_tokens":7,"output_tokens":2,"cached":3}}',
    ],
    "opencode": [
        '{"type":"step_start","part":{"type":"step-start"}}',
        '{"type":"text","part":{"type":"text","text":"I look."}}',
        '{"type":"step_finish","part":{"reason":"tool-calls","tokens":{"input":1,"output":1}}}',
        '{"type":"text","part":{"type":"text","text":"Done."}}',
        '{"type":"step_finish","part":{"reason":"stop","tokens":{"input":4,"output":2,"cache":{"read":3,"write":0}}}}',
    ],
    "copilot": [
        '{"type":"user.message","data":{"content":"the prompt"}}',
        '{"type":"assistant.message_delta","data":{"deltaContent":"I look.\\n\\nDo"}}',
        '{"type":"assistant.message_delta","data":{"deltaContent":"ne."}}',
        '{"type":"assistant.message","data":{"content":"I look.\\n\\nDone."}}',
        '{"type":"result","exitCode":0,"usage":{"premiumRequests":0}}',
    ],
    "goose": [
        '{"type":"message","message":{"role":"user","content":[{"type":"text","text":"the prompt"}]}}',
        '{"type":"message","message":{"role":"assistant","content":[{"type":"text","text":"I look."}]}}',
        '{"type":"message","message":{"role":"assistant","content":[{"type":"text","text":"\\n\\n"}]}}',
        '{"type":"message","message":{"role":"assistant","content":[{"type":"text","text":"Done."}]}}',
        '{"type":"complete","total_tokens":9}',
    ],
}
FAILED = {
    "codex": '{"type":"turn.failed","error":{"message":"no such model"}}',
    "gemini": '{"type":"result","status":"error","error":{"type":"X","message":"no such model"}}',
    "opencode": '{"type":"error","error":{"name":"APIError","data":{"message":"no such model"}}}',
    "copilot": '{"type":"session.error","data":{"message":"no such model"}}',
    "goose": '{"type":"error","error":"no such model"}',
    "claude": '{"type":"result","subtype":"success","is_error":true,"result":"no such model"}',
}


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_each_format_is_read_whatever_its_pieces(name, size):
    output = EventOutput(FORMATS[name])
    data = "\n".join(SPOKEN[name]).encode()
    said = []
    for start in range(0, len(data), size):
        assert not output.complete
        said += output.feed(data[start : start + size])
    said += output.end()
    assert "".join(said) == output.text == "I look.\n\nDone."
    assert output.complete
    if FORMATS[name].output_at is not None:
        assert (output.usage.input_tokens, output.usage.output_tokens) == (7, 2)
        assert output.usage.cached_tokens == 3


@pytest.mark.parametrize("name", FAILED)
def test_each_format_says_why_it_failed(name):
    output = EventOutput(FORMATS[name])
    with pytest.raises(BackendFailed, match=r"^no such model$"):
        list(output.feed(f"{FAILED[name]}\n".encode()))


@pytest.mark.parametrize(
    ("name", "lines", "models"),
    [
        (
            "llm",
            ["OpenAI Chat: gpt-4o (aliases: 4o)", "OpenAI Chat: house", "Default: gpt-4o-mini"],
            ["gpt-4o", "house"],
        ),
        ("ollama", ["NAME            ID    SIZE", "qwen:1b         abc   1 GB"], ["qwen:1b"]),
        ("opencode", ["house/said", "", "opencode/big-pickle"], ["house/said", "opencode/big-pickle"]),
    ],
)
async def test_models_as_tools_list_them(tmp_path, name, lines, models):
    program = tmp_path / name
    text = "\n".join(lines)
    program.write_text(f"#!{sys.executable}\nprint('''{text}''')\n")
    program.chmod(0o755)
    programs = Programs()
    assert await programs.models(TOOLS[name], str(program)) == models
    await programs.close()


async def test_a_version_is_asked_once_until_the_program_changes(tmp_path):
    program, count = tmp_path / "tool", tmp_path / "count"
    program.write_text(f"#!/bin/sh\necho x >> {count}\necho tool 1.2.3\n")
    program.chmod(0o755)
    programs, tool = Programs(), Tool("tool", "Tool", ("tool",))
    for _ in range(3):
        assert await programs.version(tool, str(program)) == "tool 1.2.3"
    assert count.read_text() == "x\n"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 4\n")
    with pytest.raises(BackendFailed, match=r"exit status 4\): it is broken"):
        await programs.version(tool, str(program))
    await programs.close()


def test_programs_that_others_can_put_there_are_not_trusted(tmp_path):
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    require_trusted(str(program))
    program.chmod(0o777)
    with pytest.raises(NotAllowed, match="anybody can write"):
        require_trusted(str(program))
    program.chmod(0o755)
    tmp_path.chmod(0o777)
    with pytest.raises(NotAllowed, match="anybody can write"):
        require_trusted(str(program))
    tmp_path.chmod(0o700)


def test_a_link_that_others_can_turn_elsewhere_is_not_trusted(tmp_path):
    """What it leads to now may be the system's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    link = folder / "tool"
    link.symlink_to("/bin/sh")
    require_trusted(str(link))
    folder.chmod(0o777)
    with pytest.raises(NotAllowed, match="anybody can write"):
        require_trusted(str(link))
