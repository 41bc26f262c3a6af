"""A comparison as text and as HTML that needs no style sheet."""

from html import escape
from typing import TYPE_CHECKING

from uia_lab.notebook.generation_html import seconds
from uia_lab.notebook.tables import text_table

if TYPE_CHECKING:
    from uia_lab.notebook.comparison import Comparison

_LINE = "1px solid var(--jp-border-color2,#d8dce2)"
_MUTED = "color:var(--jp-ui-font-color2,#5c6370)"
COLUMNS = ("answer", "backend", "state", "first token", "time", "speed", "tokens", "cost")


def figures(shown: "Comparison", index: int) -> list[tuple[str, str]]:
    """Name and value of each figure of an answer; ``-`` where there is none."""
    one = shown[index]
    first, speed, cost = one.time_to_first_token, one.tokens_per_second, shown.cost(index)
    return [
        ("backend", one.backend or "-"),
        ("state", one.state),
        ("first token", "-" if first is None else seconds(first)),
        ("time", seconds(one.elapsed)),
        ("speed", "-" if speed is None else f"{speed:.{0 if speed >= 10 else 1}f} tok/s"),
        ("tokens", "-" if one.usage is None else str(one.usage.output_tokens)),
        ("cost", "-" if cost is None else money(cost)),
    ]


def money(cost: float) -> str:
    """A cost with as many digits as tell something."""
    return "0" if cost == 0 else f"{cost:.2g}" if cost < 0.01 else f"{cost:.2f}"


def comparison_text(shown: "Comparison") -> str:
    """A table of the figures, then the answers."""
    rows = [
        [label, *(value for _, value in figures(shown, index))] for index, label in enumerate(shown.labels)
    ]
    answers = "\n\n".join(
        f"== {label} ==\n{one.text or (one.error.message if one.error else '')}"
        for label, one in zip(shown.labels, shown, strict=True)
    )
    return f"{text_table(f'{len(rows)} answers', COLUMNS, rows, 3)}\n\n{answers}"


def comparison_html(shown: "Comparison", mark: str = "") -> str:
    """The answers side by side.

    Args:
        shown: The comparison.
        mark: By which a live page finds it, to add its buttons.
    """
    marked = f' data-uia-mark="{escape(mark)}"' if mark else ""
    columns = "".join(_column(shown, index) for index in range(len(shown)))
    return (
        f'<div data-testid="uia-compare-still"{marked} style="display:grid;'
        "grid-template-columns:repeat(auto-fit,minmax(min(190px,100%),1fr));gap:8px;margin:4px 0;"
        f'font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px">{columns}</div>'
    )


def _column(shown: "Comparison", index: int) -> str:
    one = shown[index]
    rows = "".join(
        f'<tr style="background:none"><th scope="row" style="padding:1px 0;text-align:left;'
        f'font-weight:400;{_MUTED}">{name}</th>'
        '<td style="padding:1px 0;text-align:right;font-variant-numeric:tabular-nums">'
        f"{escape(value)}</td></tr>"
        for name, value in figures(shown, index)
    )
    best = f' <small style="{_MUTED}">done first</small>' if shown.fastest == index else ""
    message = one.error.message if one.error else ""
    failed = f'<p style="margin:6px 0 0;color:var(--jp-error-color1,#b42318)">{escape(message)}</p>'
    return (
        f'<div data-uia-column="{index}" style="display:flex;flex-direction:column;min-width:0;'
        f'border:{_LINE};border-radius:6px">'
        f'<p style="margin:0;padding:6px 10px;border-bottom:{_LINE};overflow-wrap:anywhere">'
        f"<b>{escape(shown.labels[index])}</b>{best}</p>"
        f'<div tabindex="0" role="group" aria-label="Answer of {escape(shown.labels[index])}" '
        'style="flex:1;max-height:24em;padding:8px 10px;overflow-y:auto;line-height:1.55;'
        'white-space:pre-wrap;overflow-wrap:anywhere">'
        f"{escape(one.text)}{failed if message else ''}</div>"
        f'<table style="width:100%;margin:0;padding:4px 10px 6px;border-top:{_LINE};font-size:12px;'
        f'border-collapse:separate">{rows}</table></div>'
    )
