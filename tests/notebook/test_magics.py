import asyncio
import atexit

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import uia_lab
from uia_lab.notebook.expand import ExpansionError, expand


@pytest.fixture(scope="module")
def ipython(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        shell = InteractiveShell.instance()
    yield shell
    # What it would do at the end of the process, done here and once.
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    InteractiveShell.clear_instance()


@pytest.fixture
def shell(ipython, server, monkeypatch):
    monkeypatch.setenv("UIA_LAB_URL", server.url)
    monkeypatch.setenv("UIA_LAB_TOKEN", server.key)
    uia_lab.load_ipython_extension(ipython)
    yield ipython
    uia_lab.unload_ipython_extension(ipython)
    ipython.reset()


def cell(shell, line, body):
    shell.run_cell_magic("uia", line, body)
    return shell.user_ns.get("answer")


def test_loading_says_where_requests_go_and_nothing_is_asked(shell, server, capsys):
    uia_lab.unload_ipython_extension(shell)
    assert "uia" not in shell.magics_manager.magics["cell"]
    uia_lab.unload_ipython_extension(shell)
    uia_lab.load_ipython_extension(shell)
    uia_lab.load_ipython_extension(shell)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert server.url in out
    assert server.key not in out


def test_a_cell_is_a_prompt(shell, capsys):
    shell.user_ns["color"] = "blue"
    answer = cell(shell, "--model w --into answer", 'the {color} {{x}} {"a": 1} ${color.upper()}\n')
    assert answer.text == 'the blue {x} {"a": 1} $BLUE '
    assert "the blue" in capsys.readouterr().out


def test_options_reach_the_request(shell):
    assert cell(shell, "-m w -n 2 -t 0 -b words --no-stream -i answer", "one two three").text == "one two "
    assert cell(shell, '--model w --system "be {1 + 1}" -i answer', "hi").prompt == "hi"


def test_use_chooses_the_model(shell, capsys):
    shell.run_line_magic("uia", "use w")
    assert cell(shell, "-i answer", "hi").model == "w"
    shell.run_line_magic("uia", "models")
    assert "* w" in capsys.readouterr().out
    shell.run_line_magic("uia", "use default")
    with pytest.raises(UsageError, match="Known: b, shared, w"):
        shell.run_line_magic("uia", "use v")


def test_looking_around(shell, capsys):
    shell.run_line_magic("uia", "status")
    assert "best_performance" in capsys.readouterr().out
    shell.run_line_magic("uia", "")
    assert "%uia use MODEL" in capsys.readouterr().out
    shell.run_line_magic("uia", "connect")
    assert "requests go to http" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "body", "message"),
    [
        ("--modell w", "x", "--modell"),
        ("--temperature hot", "x", "temperature"),
        ("--temperature 99 -m w", "x", "temperature"),
        ("words", "x", "goes below"),
        ("--into 1x", "x", "not a name"),
        ("-m 'w", "x", "quot"),
        ("", "  \n", "empty"),
        ("-m w", "{nmae}", "nmae"),
        ("-m b", "x", "out of paper"),
        ("-m nowhere", "x", "nowhere"),
    ],
)
def test_mistakes_are_one_line(shell, line, body, message):
    with pytest.raises(UsageError, match=message) as caught:
        cell(shell, line, body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [("statsu", "Did you mean 'status'"), ("use", "give one"), ("connect http://127.0.0.1:1/", "serve")],
)
def test_mistaken_commands(shell, line, message):
    with pytest.raises(UsageError, match=message):
        shell.run_line_magic("uia", line)


def test_tables_and_reasons(shell, capsys):
    shell.run_line_magic("uia", "backends")
    assert "lab.backends.add" in capsys.readouterr().out
    shell.run_line_magic("uia", "explain w")
    assert "words serves text-generation" in capsys.readouterr().out
    shell.run_line_magic("uia", "explain shared -b broken")
    assert "broken serves" in capsys.readouterr().out
    cell(shell, "-m w -i answer", "hi there")
    shell.run_line_magic("uia", "requests 5")
    assert "words" in capsys.readouterr().out


def test_prefer_and_session_reach_the_request(shell, server):
    assert cell(shell, "-m w -p gpu,api --session s1 -i answer", "hi").text == "hi "
    with pytest.raises(UsageError, match="prefer"):
        cell(shell, "-m w -p gpuu", "hi")


def completions(shell, text):
    """What the line becomes with each completion at its end, as a kernel is asked for them."""
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    return [(text[: item.start] + item.text).split()[-1] for item in found]


def test_completion(shell):
    shell.run_line_magic("uia", "connect")
    assert completions(shell, "%uia st") == ["status"]
    assert {"status", "explain", "requests"} <= set(completions(shell, "%uia "))
    assert completions(shell, "%%uia --max") == ["--max-tokens"]
    assert "--temperature" in completions(shell, "%%uia --model w --")
    assert "--model" not in completions(shell, "%%uia --model w --")
    assert completions(shell, "%%uia -m s") == ["shared"]
    assert completions(shell, "%uia use s") == ["shared"]
    assert completions(shell, "%%uia --backend br") == ["broken"]
    assert completions(shell, "%%uia --prefer gpu,we") == ["gpu,websocket"]
    assert "--into" not in completions(shell, "%%uia --into an")
    # Other lines are none of its business.
    shell.user_ns["statistics_of_mine"] = 1
    assert "statistics_of_mine" in completions(shell, "statistics_of")


def test_completion_opens_nothing_and_waits_for_nobody(shell, monkeypatch):
    from uia_lab.notebook import connect, magic_completion

    connect.forget()
    assert "w" not in completions(shell, "%uia use w")
    assert connect.opened() is None

    async def silent(_transport, _kind):
        await asyncio.sleep(3600)

    shell.run_line_magic("uia", "connect")
    monkeypatch.setattr(magic_completion, "_asked", silent)
    monkeypatch.setattr(magic_completion, "WAIT_S", 0.05)
    assert magic_completion.Names()("models") == []


def test_names_are_asked_for_now_and_then(shell, monkeypatch):
    from uia_lab.notebook import magic_completion

    shell.run_line_magic("uia", "connect")
    now, asked = [0.0], []

    async def counted(_transport, kind):
        asked.append(kind)
        return [f"{kind}{len(asked)}"]

    monkeypatch.setattr(magic_completion, "_asked", counted)
    names = magic_completion.Names(lambda: now[0])
    assert [names("models"), names("models"), names("backends")] == [["models1"], ["models1"], ["backends2"]]
    now[0] = magic_completion.FRESH_S
    assert names("models") == ["models3"]


def test_unloading_undoes_everything(ipython, server, monkeypatch):
    from uia_lab.notebook import connect

    monkeypatch.setenv("UIA_LAB_URL", server.url)
    monkeypatch.setenv("UIA_LAB_TOKEN", server.key)
    before = (
        set(ipython.magics_manager.magics["line"]),
        set(ipython.magics_manager.magics["cell"]),
        set(ipython.magics_manager.registry),
        list(ipython.Completer.custom_matchers),
    )
    for _ in range(2):
        uia_lab.load_ipython_extension(ipython)
    assert len(ipython.Completer.custom_matchers) == len(before[3]) + 1
    ipython.run_line_magic("uia", "connect")
    lab = connect.opened()
    for _ in range(2):
        uia_lab.unload_ipython_extension(ipython)
    assert lab.closed
    assert before == (
        set(ipython.magics_manager.magics["line"]),
        set(ipython.magics_manager.magics["cell"]),
        set(ipython.magics_manager.registry),
        list(ipython.Completer.custom_matchers),
    )


def test_a_mistake_is_no_traceback(shell, capsys):
    shell.run_cell("%uia statsu")
    captured = capsys.readouterr()
    assert "UsageError" in captured.err
    assert "Traceback" not in captured.out + captured.err


def test_expand():
    assert expand("{a}-{{a}}-{ b }-{}", {"a": 1, "b": [2]}) == "1-{a}-[2]-{}"
    assert expand("if (x) { return y; }", {}) == "if (x) { return y; }"
    with pytest.raises(ExpansionError, match="ZeroDivisionError"):
        expand("{1/0}", {})
