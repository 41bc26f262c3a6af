"""A generation as HTML that needs no style sheet: for saved notebooks, GitHub, nbconvert and VS Code."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uia_lab.notebook.generation import Generation, Turn

_SIGNS = {"waiting": "◌", "streaming": "●", "done": "✓", "stopped": "■", "failed": "✕"}
_TONES = {
    "waiting": "--jp-info-color1",
    "streaming": "--jp-info-color1",
    "done": "--jp-success-color1",
    "stopped": "--jp-warn-color1",
    "failed": "--jp-error-color1",
}
_LINE = "1px solid var(--jp-border-color2,#d8dce2)"
_FONT = "var(--jp-ui-font-family,system-ui,sans-serif)"
_MUTED = "color:var(--jp-ui-font-color2,#5c6370)"
_MARGIN = "13rem"


def seconds(value: float) -> str:
    """A duration as people read it: ``0.21 s``, ``85 ms``."""
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.2f} s"


def turn_words(turn: "Turn") -> str:
    """What happened at a switch of backends, in one line."""
    why = f": {turn.reason}" if turn.reason else ""
    return f"{turn.from_id} → {turn.to_id} at {seconds(turn.at_s)}{why}"


def generation_html(shown: "Generation", mark: str = "") -> str:
    """State and figures, the text with its switches in the margin, and who was tried.

    Args:
        shown: The record.
        mark: By which a live page finds it, to add its buttons.
    """
    head = (
        f'<p data-testid="uia-generation-summary" style="margin:0;padding:7px 12px;border-bottom:{_LINE};'
        f'font-size:12px;{_MUTED}">'
        f'<span style="color:var({_TONES[shown.state]},currentColor)">{_SIGNS[shown.state]}</span> '
        f"{escape(shown.summary(error=False))}</p>"
    )
    room = f"calc({_MARGIN} + 24px)" if shown.turns else "12px"
    width = f"calc(72ch + {_MARGIN})" if shown.turns else "72ch"
    body = (
        '<p data-testid="uia-generation-text" style="position:relative;margin:0;'
        f"padding:10px {room} 10px 12px;max-width:{width};min-height:1.55em;"
        f'line-height:1.55;white-space:pre-wrap;overflow-wrap:anywhere">{_text(shown)}</p>'
    )
    failed = (
        '<p data-testid="uia-generation-error" style="margin:0;padding:0 12px 10px;overflow-wrap:anywhere;'
        f'color:var(--jp-error-color1,#b42318)">{escape(shown.error.message)}</p>'
        if shown.error
        else ""
    )
    marked = f' data-uia-mark="{escape(mark)}"' if mark else ""
    return (
        f'<div data-testid="uia-generation" data-state="{shown.state}"{marked} style="margin:4px 0;'
        f'border:{_LINE};border-radius:6px;font-family:{_FONT};font-size:13px">'
        f"{head}{body}{failed}{_trail(shown)}</div>"
    )


def _text(shown: "Generation") -> str:
    """The text; each switch is a sign in it, with its words in the margin at the same height."""
    pieces, last = list[str](), 0
    for turn in shown.turns:
        pieces.append(escape(shown.text[last : turn.offset]))
        pieces.append(
            '<span data-testid="uia-generation-turn" style="color:var(--jp-warn-color0,#8a5a00)">⇄'
            f'<small style="position:absolute;right:12px;width:{_MARGIN};white-space:normal;'
            f'line-height:1.35"> {escape(turn_words(turn))} </small></span>'
        )
        last = turn.offset
    return "".join(pieces) + escape(shown.text[last:])


def _trail(shown: "Generation") -> str:
    """Every backend that was tried, where it was more than one."""
    if len(shown.attempts) < 2:
        return ""
    rows = "".join(
        f"<li>{escape(attempt.backend_id)}: {escape(attempt.outcome)} after "
        f"{seconds(attempt.latency_ms / 1000)}"
        f"{': ' + escape(attempt.message) if attempt.message else ''}</li>"
        for attempt in shown.attempts
    )
    return (
        f'<details data-testid="uia-generation-attempts" style="padding:0 12px 8px;font-size:12px;{_MUTED}">'
        f"<summary>{len(shown.attempts)} attempts</summary>"
        f'<ol style="margin:4px 0 0;padding-left:20px">{rows}</ol></details>'
    )
