"""Markdown of a model, made safe: a tree that a page builds elements from, and HTML for saved notebooks.

HTML in the text stays text, pictures become links (loading one tells its server who reads), and links go only
where :mod:`markdown_it` lets them and to the schemes of the web and of mail.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode

Node: TypeAlias = "str | list[Any]"
"""Text, or ``[tag, attributes, children]``."""

SCHEMES = ("http", "https", "mailto")
MAX_CHARACTERS = 40_000
"""A longer text is shown as it is: one that is made to be slow costs seconds of the Lab's loop."""
_UNSAFE = frozenset({"html_block", "html_inline", "image"})
_CODE = re.compile(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)")
_WRAPPERS = frozenset({"root", "inline"})
_STYLES = {
    "pre": "padding:8px 10px;overflow-x:auto;border:1px solid var(--jp-border-color2,#d8dce2)",
    "table": "border-collapse:collapse",
}


@cache
def _parser() -> MarkdownIt:
    return (
        MarkdownIt("commonmark", {"html": False, "maxNesting": 20})
        .enable(["table", "strikethrough"])
        .disable(["image"])
    )


def markdown_tree(text: str) -> list[Node]:
    """The blocks of a text.

    Args:
        text: Markdown, whoever wrote it.

    Returns:
        One node a block, JSON-ready.
    """
    if len(text) > MAX_CHARACTERS:
        return [["pre", {}, [text]]]
    return _children(SyntaxTreeNode(_parser().parse(text)))


def markdown_html(text: str) -> str:
    """The text as HTML without anything that runs or loads."""
    return "".join(_written(node) for node in markdown_tree(text))


def markdown_source(text: str) -> str:
    """The text as Markdown that is safe to render elsewhere: no HTML, and no picture that would be loaded.

    Notebooks render the Markdown of a cell with HTML and pictures, and those are a model's here.
    """
    if len(text) > MAX_CHARACTERS:
        return in_fence(text)
    fenced = {
        line
        for token in _parser().parse(text)
        if token.type in ("fence", "code_block") and token.map is not None
        for line in range(*token.map)
    }
    lines = [line if number in fenced else _plain(line) for number, line in enumerate(text.split("\n"))]
    written = "\n".join(lines)
    # What looks like code here may be none there.
    return written if loads_nothing(written) else in_fence(text)


def loads_nothing(text: str) -> bool:
    """Whether nothing of a Markdown text is HTML or a picture, wherever it is rendered."""
    return not any(token.type in _UNSAFE for token in _flat(_eager().parse(text)))


def in_fence(text: str) -> str:
    """A text as it is, in a fence that it cannot end."""
    # Fewer than three are no fence.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _plain(line: str) -> str:
    """A line whose HTML and pictures are text; code in it stays as it is."""
    made, last = list[str](), 0
    for code in _CODE.finditer(line):
        made += [_quoted(line[last : code.start()]), code.group()]
        last = code.end()
    return "".join(made) + _quoted(line[last:])


def _quoted(text: str) -> str:
    return text.replace("![", "\\!\\[").replace("<", "&lt;")


@cache
def _eager() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable("table")


def _flat(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _flat(token.children or ())


def _children(node: SyntaxTreeNode) -> list[Node]:
    made: list[Node] = []
    for child in node.children:
        # A paragraph of a tight list is hidden: its text stands in the item itself.
        if child.type in _WRAPPERS or child.hidden:
            made += _children(child)
        else:
            made.append(_node(child))
    return made


def _node(node: SyntaxTreeNode) -> Node:
    match node.type:
        case "text":
            return node.content
        case "softbreak":
            return "\n"
        case "hardbreak":
            return ["br", {}, []]
        case "code_inline":
            return ["code", {}, [node.content]]
        case "fence" | "code_block":
            language = node.info.split()[0] if node.info.split() else ""
            return ["pre", {"language": language} if language else {}, [["code", {}, [node.content]]]]
        case "link":
            href = str(node.attrs.get("href", ""))
            return ["a", {"href": href} if _goes(href) else {}, _children(node)]
        case "ordered_list":
            start = node.attrs.get("start")
            return ["ol", {"start": int(start)} if start is not None else {}, _children(node)]
        case "th" | "td":
            align = str(node.attrs.get("style", "")).removeprefix("text-align:")
            return [node.tag, {"align": align} if align else {}, _children(node)]
    return [node.tag or "span", {}, _children(node)]


def _goes(href: str) -> bool:
    try:
        return urlsplit(href).scheme in SCHEMES
    except ValueError:
        return False


def _written(node: Node) -> str:
    if isinstance(node, str):
        return escape(node)
    tag, attributes, children = node
    if tag in ("br", "hr"):
        return f"<{tag}>"
    inside = "".join(_written(child) for child in children)
    return f"<{tag}{_attributes(tag, attributes)}>{inside}</{tag}>"


def _attributes(tag: str, attributes: Mapping[str, Any]) -> str:
    said = ""
    if "href" in attributes:
        said += f' href="{escape(attributes["href"])}" rel="noopener noreferrer"'
    if "start" in attributes:
        said += f' start="{attributes["start"]}"'
    style = _STYLES.get(tag, f"text-align:{attributes['align']}" if "align" in attributes else "")
    return said + (f' style="{style}"' if style else "")
