"""``lab.report()``: one HTML page that needs nothing from anywhere else."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from uia_lab.notebook import figures
from uia_lab.notebook.frames import needed
from uia_lab.notebook.status import still as status_still
from uia_lab.notebook.tables import html_table

if TYPE_CHECKING:
    import pandas as pd

LISTED = 200
_COLUMNS = ("began (UTC)", "request", "model", "backend", "outcome", "latency", "first token", "tokens")
_STYLE = """
:root { color-scheme: light dark; --line: rgba(127,135,148,.35); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; padding: .3rem 0; opacity: .75; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.wide { overflow-x: auto; } footer { margin: 3rem 0 1rem; font-size: 12px; opacity: .75; }
"""
# Nothing may be fetched, whatever a name in the data contains.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def report_page(where: str, report: Mapping[str, Any], frame: "pd.DataFrame") -> str:
    """The page: backends, figures, and the latest requests.

    Its size is that of plotly's library and of at most MOST_POINTS points and LISTED rows: about 5 MB.

    Args:
        where: In words, who serves.
        report: The status report.
        frame: The requests, the newest first.
    """
    offline = needed("plotly.offline")
    drawn = [
        ("Latency", figures.latency(frame)),
        ("Share", figures.share(frame)),
        ("Tokens", figures.tokens(frame)),
        ("Backends compared", figures.compare(frame, "backend")),
    ]
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    span = ""
    if len(frame):
        first, last = frame["began_at"].min(), frame["began_at"].max()
        span = f"{len(frame):,} requests from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    sections = "".join(
        f"<h2>{escape(title)}</h2>{_drawing(figure)}"
        f'<div class="wide">{figures.still(figure)["text/html"]}</div>'
        for title, figure in drawn
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>uia_lab report, {made}</title><style>{_STYLE}</style>"
        f"<script>{offline.get_plotlyjs()}</script></head><body>"
        f"<h1>uia_lab report</h1><p>{escape(where)} · {made}<br>{span or 'no requests in this time'}</p>"
        f'<h2>Backends</h2><div class="wide">{status_still(report)["text/html"]}</div>'
        f"{sections}<h2>Latest requests</h2>"
        f'<div class="wide">{html_table(f"the latest {LISTED} at most", _COLUMNS, _rows(frame), 5)}</div>'
        f"<footer>Instance {escape(str(report.get('instance_id', '')))}. Prompts and answers are not part of "
        "this page.</footer></body></html>"
    )


def _drawing(figure: Any) -> str:
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return html


def _rows(frame: "pd.DataFrame") -> Sequence[Sequence[str]]:
    return [
        [
            f"{row.began_at:%Y-%m-%d %H:%M:%S}",
            str(row.id),
            _text(row.model),
            _text(row.backend),
            _text(row.outcome, "running"),
            _ms(row.latency_ms),
            _ms(row.first_token_ms),
            _text(row.output_tokens),
        ]
        for row in frame.iloc[:LISTED].itertuples()
    ]


def _text(value: Any, otherwise: str = "-") -> str:
    import pandas as pd

    return otherwise if pd.isna(value) else str(value)


def _ms(value: float) -> str:
    return "-" if value != value else f"{value:,.0f} ms"  # noqa: PLR0124 - NaN
