import threading

import pytest
from markdown_it import MarkdownIt

from uia_lab.domain.errors import BackendFailed, BadRequest
from uia_lab.notebook.http_transport import HttpTransport
from uia_lab.notebook.lab import Lab
from uia_lab.notebook.local_transport import InProcessTransport
from uia_lab.notebook.widgets.chat_view import ChatView


@pytest.fixture(params=["server", "local"])
def lab(request):
    if request.param == "server":
        server = request.getfixturevalue("server")
        transport = HttpTransport(server.url, server.key)
    else:
        transport = InProcessTransport(request.getfixturevalue("service"))
    with Lab(transport) as lab:
        yield lab


def test_turns(lab):
    chat = lab.chat("w", system="be brief", temperature=0)
    assert chat.send("one two").wait(50).text == "one two "
    assert chat.send("three").wait(50).text == "three "
    assert chat.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "one two "},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "three "},
    ]
    first = chat.last
    assert chat.regenerate().wait(50) is not first
    assert len(chat.turns) == 4
    chat.edit("four").wait(50)
    assert [turn.text for turn in chat.turns] == ["one two", "one two ", "four", "four "]
    assert "**You:**\n\nfour" in chat.export("markdown")
    code = chat.export("code")
    compile(code, "chat", "exec")
    assert "'be brief'" in code
    chat.clear()
    assert chat.turns == ()


def test_one_answer_at_a_time_and_stop(lab):
    chat = lab.chat("w")
    running = chat.send("slowly " + "on " * 500)
    begun = threading.Event()
    running.subscribe(lambda: running.text and begun.set())
    assert begun.wait(50)
    for act in (lambda: chat.send("x"), chat.regenerate, chat.clear, lambda: chat.edit("x")):
        with pytest.raises(BadRequest, match="still arriving"):
            act()
    chat.stop()
    assert running.wait(50).state == "stopped"
    assert chat.messages[-1]["content"].startswith("slowly")
    assert chat.running is None


def test_a_failed_turn_is_no_message(lab):
    chat = lab.chat("b")
    assert chat.send("x").wait(50).state == "failed"
    assert chat.messages == [{"role": "user", "content": "x"}]
    chat.change(model="w")
    assert chat.regenerate().wait(50).text == "x "


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 3},
        {"temperature": "hot"},
        {"max_tokens": 0.5},
        {"colour": "red"},
        {"system": 5},
        {"seed": True},
    ],
)
def test_settings_are_checked(lab, settings):
    chat = lab.chat("w")
    before = chat.settings
    with pytest.raises(BadRequest) as caught:
        chat.change(**settings)
    assert caught.value.param in settings
    assert chat.settings == before


def test_nothing_said(lab):
    chat = lab.chat("w")
    for act in (lambda: chat.send("  "), chat.regenerate, lambda: chat.edit("x"), lambda: chat.export("pdf")):
        with pytest.raises(BadRequest):
            act()
    assert "Nothing was said" in chat._repr_mimebundle_()["text/html"]


@pytest.fixture
def view(lab):
    made = []

    def make(chat):
        made.append(ChatView(chat, direct=False))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_view_follows_and_acts(lab, view):
    chat = lab.chat("w")
    shown = view(chat)
    shown._handle_custom_msg({"type": "nonsense"}, [])
    shown._handle_custom_msg({"type": "change", "settings": {"system": "short", "max_tokens": 3}}, [])
    assert (shown.settings["system"], shown.settings["max_tokens"]) == ("short", 3)
    shown._handle_custom_msg({"type": "send", "text": "a **b** c"}, [])
    chat.last.wait(50)
    assert [turn["role"] for turn in shown.turns] == ["user", "assistant"]
    assert shown.live == {}
    answer = shown.turns[1]
    assert answer["blocks"] == [["p", {}, ["a ", ["strong", {}, ["b"]], " c"]]]
    assert (answer["state"], answer["backend"], answer["error"]) == ("done", "words", "")
    shown._handle_custom_msg({"type": "edit", "text": "d"}, [])
    chat.last.wait(50)
    shown._handle_custom_msg({"type": "regenerate"}, [])
    chat.last.wait(50)
    assert [turn["text"] for turn in shown.turns] == ["d", "d "]
    shown._handle_custom_msg({"type": "change", "settings": {"temperature": 5}}, [])
    assert "from 0 to 2" in shown.notice
    shown._handle_custom_msg({"type": "export"}, [])
    assert set(shown.exports) == {"code", "markdown"}
    shown._handle_custom_msg({"type": "clear"}, [])
    assert shown.turns == []


def test_the_view_offers_what_does_text(lab, view):
    told = threading.Event()
    shown = view(lab.chat("w"))
    shown.observe(lambda _: told.set(), "options")
    shown._handle_custom_msg({"type": "options"}, [])
    assert told.wait(50)
    assert {"w", "b", "shared"} <= set(shown.options["models"])
    assert {each["id"] for each in shown.options["backends"]} == {"words", "broken"}


def test_an_answer_goes_out_in_few_updates_and_the_last_one_is_right(lab, view):
    chat = lab.chat("w")
    shown = view(chat)
    updates = []
    shown.observe(lambda change: updates.append(change["new"].get("text")), "live")
    chat.send("word " * 900).wait(50)
    assert shown.turns[-1]["text"] == "word " * 900
    assert len(updates) < 450


def test_why_an_answer_failed_loads_nothing_either(lab):
    """The words are those of whoever failed, a peer for example."""
    chat = lab.chat("w")
    chat.send("hi").wait(50)
    chat.last.error = BackendFailed("![x](http://stranger.example/seen) <img src=http://stranger.example/>")
    for markdown in (chat.export("markdown"), chat._repr_mimebundle_()["text/markdown"]):
        assert "stranger.example" in markdown
        assert "![x](" not in markdown
        assert "<img" not in markdown


def test_a_fence_left_open_in_one_turn_lets_nothing_out_of_the_next(lab):
    chat = lab.chat("w")
    chat.send("hello\n```").wait(50)
    chat.send("```\n<img src=http://stranger.example/>\n```").wait(50)
    shown = MarkdownIt("commonmark", {"html": True}).render(chat.export("markdown"))
    assert "<img" not in shown
    assert "stranger.example" in shown


def test_what_a_saved_notebook_keeps(lab):
    chat = lab.chat("w", system="<b>")
    chat.send("# hi <script>").wait(50)
    bundle = chat._repr_mimebundle_()
    assert "<script>" not in bundle["text/html"]
    assert "&lt;b&gt;" in bundle["text/html"]
    assert "**Assistant:**\n\n# hi &lt;script>" in bundle["text/markdown"]
    assert "done" in bundle["text/plain"]
