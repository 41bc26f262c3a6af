import json
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from uia_lab.notebook.markdown import MAX_CHARACTERS, markdown_html, markdown_source, markdown_tree


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes += attrs


def tags(text):
    parser = Tags()
    parser.feed(markdown_html(text))
    return parser


def test_the_usual_is_there():
    text = "# A\n\n- one\n- **two** `x`\n\n3. three\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
    text += "```python\nx < 1\n```\n\n> q ~~s~~"
    found = tags(text).found
    for tag in ("h1", "ul", "li", "strong", "code", "ol", "table", "th", "td", "pre", "blockquote", "s"):
        assert tag in found, tag
    assert "x &lt; 1" in markdown_html(text)
    assert 'start="3"' in markdown_html(text)
    assert ["pre", {"language": "python"}, [["code", {}, ["x < 1\n"]]]] in markdown_tree(text)
    assert markdown_tree("- one")[0] == ["ul", {}, [["li", {}, ["one"]]]], "a tight list has no paragraphs"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "[x](file:///etc/passwd)",
        "[x](//example.org/no-scheme)",
        "![x](https://example.org/tracking.png)",
        "<https://example.org/'onmouseover='x'>",
        '[x](https://example.org/"onmouseover="x)',
        "| a |\n|---|\n| <svg onload=alert(1)> |",
        "```<script>\nx\n```",
        "<a href='javascript:alert(1)'>x</a>",
    ],
)
def test_nothing_runs_and_nothing_loads(text):
    seen = tags(text)
    assert not {"script", "img", "svg", "iframe", "object"} & set(seen.found)
    for name, value in seen.attributes:
        assert name in ("href", "rel", "style", "start")
        if name == "href":
            assert value.startswith(("https://example.org/", "http://", "mailto:"))


def test_it_is_json_and_bounded():
    json.dumps(markdown_tree("a *b* [c](http://d)\n\n***"))
    deep = markdown_tree("> " * 2000 + "x")
    json.dumps(deep)
    assert markdown_tree("x" * (MAX_CHARACTERS + 1))[0][0] == "pre"
    assert markdown_tree("") == []


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://example.org/t.png)",
        "<img src=https://example.org/t.png>",
        "`<img src=x>``",
        "\\`<img src=x>`",
        "``a` <img src=x>` b",
        "- a\n  <div onclick=x>\n\n<!-- x -->",
        "![a][b]\n\n[b]: https://example.org/t.png",
        "~~~\nopen fence\n",
        "`a\n<img src=x>`",
    ],
)
def test_exported_markdown_loads_and_runs_nothing_either(text):
    source = markdown_source(text)
    html = MarkdownIt("commonmark", {"html": True}).render(source)
    assert "<img" not in html
    assert "<div" not in html
    assert "<!--" not in html


def test_code_is_exported_as_it_is():
    text = "use `a < b` and\n\n```c\nif (a < b) x[!a];\n```\n\nor ``<b>``"
    assert markdown_source(text) == text


def test_a_fence_is_one_where_the_text_has_single_backticks():
    """A code span over two lines, of which a line alone shows something else; then a paragraph ends."""
    picture = "![p](http://stranger.example/p)"
    text = f"x ` y\nz ` <img src=http://stranger.example/seen> {picture} ` w\n\nend"
    shown = MarkdownIt("commonmark", {"html": True}).render(markdown_source(text))
    assert "<img" not in shown
    assert "stranger.example" in shown


def test_a_text_that_takes_minutes_to_parse_is_shown_as_it_is():
    text = "[" * (MAX_CHARACTERS + 1)
    assert markdown_source(text) == f"```\n{text}\n```"
