"""A conversation as Markdown and as HTML that needs no style sheet."""

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from uia_lab.notebook.markdown import in_fence, loads_nothing, markdown_html, markdown_source

if TYPE_CHECKING:
    from uia_lab.notebook.chat import Chat, ChatTurn

_LINE = "1px solid var(--jp-border-color2,#d8dce2)"
_MUTED = "color:var(--jp-ui-font-color2,#5c6370)"
_NAMES = {"system": "System", "user": "You", "assistant": "Assistant"}


def chat_markdown(chat: "Chat") -> str:
    """The conversation for reading."""
    said = _markdown(chat, markdown_source)
    # A fence that one turn leaves open would end where the next one begins its own.
    return said if loads_nothing(said) else _markdown(chat, in_fence)


def _markdown(chat: "Chat", shown: Callable[[str], str]) -> str:
    system = chat.settings.system
    parts = [f"**{_NAMES['system']}:**\n\n{shown(system)}"] if system else []
    for turn in chat.turns:
        parts.append(f"**{_NAMES[turn.role]}:**\n\n{shown(turn.text)}")
        # Why an answer failed is told in the words of whoever failed.
        if ending := _ending(turn, "_").strip():
            parts.append(shown(ending))
    return "\n\n".join(parts) or "_Nothing was said yet._"


def chat_html(chat: "Chat", mark: str = "") -> str:
    """The conversation as a saved notebook keeps it.

    Args:
        chat: The conversation.
        mark: By which a live page finds it.
    """
    system = chat.settings.system
    said = f'<p style="margin:0;padding:8px 12px;{_MUTED}">{escape(system)}</p>' if system else ""
    turns = "".join(_turn_html(turn) for turn in chat.turns)
    empty = f'<p style="margin:0;padding:8px 12px;{_MUTED}">Nothing was said yet.</p>'
    marked = f' data-uia-mark="{escape(mark)}"' if mark else ""
    return (
        f'<div data-testid="uia-chat-still"{marked} style="margin:4px 0;border:{_LINE};border-radius:6px;'
        f'font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.55">'
        f"{said}{turns or empty}</div>"
    )


def _turn_html(turn: "ChatTurn") -> str:
    body = markdown_html(turn.text)
    if turn.role == "user":
        body = f'<p style="margin:0;white-space:pre-wrap;overflow-wrap:anywhere">{escape(turn.text)}</p>'
    ending = _ending(turn, "")
    note = f'<p style="margin:4px 0 0;font-size:12px;{_MUTED}">{escape(ending.strip())}</p>' if ending else ""
    return (
        f'<div style="padding:8px 12px;border-top:{_LINE}"><p style="margin:0 0 2px;font-weight:600">'
        f"{_NAMES[turn.role]}</p>{body}{note}</div>"
    )


def _ending(turn: "ChatTurn", mark: str) -> str:
    """State and figures of an answer, in one line."""
    return f"\n\n{mark}{turn.generation.summary()}{mark}" if turn.generation is not None else ""
