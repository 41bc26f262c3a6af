"""Figures of past requests: plotly's, with a table for where nothing draws them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from uia_lab.domain.errors import BadRequest
from uia_lab.notebook.frames import needed
from uia_lab.notebook.tables import html_table, text_table

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# Okabe and Ito (2008): told apart by everybody, on light and on dark ground.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
INK = "#7f8794"
GRID = "rgba(127,135,148,0.25)"
# A figure is kept in the notebook; more points than these nobody tells apart.
MOST_POINTS = 2_000
BINS = 60
NONE = "none"
MIME = "application/vnd.plotly.v1+json"


def latency(frame: "pd.DataFrame") -> "go.Figure":
    """When each request came and how long it took, by backend; failed ones are crosses."""
    go = needed("plotly.graph_objects")
    frame = frame.iloc[: MOST_POINTS * 10]
    step = max(1, -(-len(frame) // MOST_POINTS))
    shown = frame.iloc[::step]
    figure = _figure("Latency", "latency", "ms")
    for number, (backend, group) in enumerate(_groups(shown, "backend")):
        figure.add_trace(
            go.Scatter(
                x=group["began_at"],
                y=group["latency_ms"],
                mode="markers",
                name=backend,
                marker={
                    "color": COLORS[number % len(COLORS)],
                    "size": 6,
                    "symbol": ["circle" if end == "ok" else "x" for end in group["outcome"].fillna("")],
                },
                text=group["model"].fillna("-") + " · " + group["outcome"].fillna("running"),
                hovertemplate="%{y:.0f} ms<br>%{x}<br>%{text}",
            )
        )
    figure.update_yaxes(type="log")
    return _with_table(figure, "Latency by backend", _latencies(frame, "backend"))


def share(frame: "pd.DataFrame") -> "go.Figure":
    """Who answered over time: requests that went well, stacked by backend."""
    go, pandas = needed("plotly.graph_objects"), needed("pandas")
    frame = frame[frame["outcome"] == "ok"]
    figure = _figure("Who answered", "requests", "")
    if len(frame):
        span = frame["began_at"].max() - frame["began_at"].min()
        width = max(pandas.Timedelta(seconds=1), (span / BINS).ceil("s"))
        moments = frame["began_at"].dt.floor(width)
        for number, (backend, group) in enumerate(_groups(frame, "backend")):
            counts = group.groupby(moments.loc[group.index]).size()
            figure.add_trace(
                go.Bar(x=counts.index, y=counts, name=backend, marker_color=COLORS[number % len(COLORS)])
            )
    figure.update_layout(barmode="stack", bargap=0)
    total = max(1, len(frame))
    rows = [
        [backend, f"{len(group):,}", f"{len(group) / total:.1%}"]
        for backend, group in _groups(frame, "backend")
    ]
    return _with_table(figure, "Share by backend", rows, ("backend", "requests", "share"))


def tokens(frame: "pd.DataFrame") -> "go.Figure":
    """Tokens read and written by model."""
    go = needed("plotly.graph_objects")
    figure = _figure("Tokens by model", "tokens", "")
    groups = _groups(frame, "model")
    sums = [(name, int(g["input_tokens"].sum()), int(g["output_tokens"].sum())) for name, g in groups]
    for number, which in enumerate(("in", "out")):
        figure.add_trace(
            go.Bar(
                x=[row[0] for row in sums],
                y=[row[1 + number] for row in sums],
                name=which,
                marker_color=COLORS[number],
            )
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(type="category")
    rows = [[name, f"{read:,}", f"{written:,}"] for name, read, written in sums]
    return _with_table(figure, "Tokens by model", rows, ("model", "tokens in", "tokens out"))


def compare(frame: "pd.DataFrame", by: str) -> "go.Figure":
    """Backends, or models, side by side: latency, first token and speed as boxes.

    Args:
        frame: Requests.
        by: ``backend`` or ``model``.

    Raises:
        BadRequest: Another ``by``.
    """
    if by not in ("backend", "model"):
        raise BadRequest(f"by must be 'backend' or 'model', not {by!r}", param="by")
    subplots = needed("plotly.subplots")
    go = needed("plotly.graph_objects")
    measures = (
        ("latency_ms", "latency, ms"),
        ("first_token_ms", "first token, ms"),
        ("tokens_per_second", "tokens a second"),
    )
    figure = _styled(
        _kind()(subplots.make_subplots(rows=1, cols=3, subplot_titles=[title for _, title in measures])),
        f"By {by}",
    )
    well = frame[frame["outcome"] == "ok"].iloc[:MOST_POINTS]
    for number, (name, group) in enumerate(_groups(well, by)):
        for column, (measure, _) in enumerate(measures, start=1):
            figure.add_trace(
                go.Box(
                    y=group[measure].dropna(),
                    name=name,
                    marker_color=COLORS[number % len(COLORS)],
                    showlegend=column == 1,
                    boxpoints=False,
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(showticklabels=False)
    figure.update_layout(margin_t=88)
    return _with_table(figure, f"By {by}", _latencies(frame, by), (by, *LATENCIES[1:]))


LATENCIES = ("backend", "requests", "ok", "p50 ms", "p95 ms", "p99 ms", "first token ms", "tokens/s")


def _latencies(frame: "pd.DataFrame", by: str) -> list[list[str]]:
    rows = []
    for name, group in _groups(frame, by):
        well = group[group["outcome"] == "ok"]
        marks = [well["latency_ms"].quantile(q) for q in (0.5, 0.95, 0.99)]
        more = [well["first_token_ms"].median(), well["tokens_per_second"].median()]
        rows.append([name, f"{len(group):,}", f"{len(well):,}", *map(_number, [*marks, *more])])
    return rows


def _groups(frame: "pd.DataFrame", by: str) -> list[tuple[str, Any]]:
    """The groups of a column in a stable order; what has no value is NONE."""
    return [(str(name), group) for name, group in frame.groupby(frame[by].fillna(NONE), sort=True)]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:,.0f}"  # noqa: PLR0124 - NaN


def _figure(title: str, measure: str, unit: str) -> Any:
    figure = _styled(_kind()(), title)
    figure.update_yaxes(title=f"{measure}, {unit}" if unit else measure)
    return figure


def _styled(figure: Any, title: str) -> Any:
    figure.update_layout(
        title=title,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 12},
        margin={"l": 64, "r": 16, "t": 56, "b": 48},
        height=360,
        legend={"orientation": "h", "y": -0.18},
    )
    figure.update_xaxes(gridcolor=GRID, linecolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, linecolor=GRID, zeroline=False, rangemode="tozero")
    return figure


def _with_table(
    figure: Any, title: str, rows: Sequence[Sequence[str]], columns: Sequence[str] = LATENCIES
) -> Any:
    # By hand, since plotly keeps unknown attributes of a figure from being set.
    object.__setattr__(figure, "_uia_table", (title, columns, rows))
    return figure


def still(figure: Any) -> Mapping[str, str]:
    """The figures in words: ``text/plain`` and ``text/html``."""
    title, columns, rows = figure._uia_table  # noqa: SLF001 - set above
    return {
        "text/plain": text_table(title, columns, rows),
        "text/html": html_table(title, columns, rows),
    }


@cache
def _kind() -> Callable[..., Any]:
    """A figure of plotly that leaves a table behind where nothing draws it, as on GitHub and in nbconvert."""
    import json

    go = needed("plotly.graph_objects")

    class ReportFigure(go.Figure):  # type: ignore[misc,name-defined]  # the base is imported late
        """A figure, and its figures."""

        # IPython asks for this first, and plotly's own would leave out the table.
        _ipython_display_ = None

        def _repr_mimebundle_(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {MIME: json.loads(self.to_json()), **still(self)}

    return ReportFigure
