"""``lab.replay()``: what happened beside what another strategy would have made of it."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from uia_lab.notebook.tables import html_table, text_table

_FIGURES = (
    ("p50", "p50_ms"),
    ("p95", "p95_ms"),
    ("p99", "p99_ms"),
    ("first token p50", "first_token_p50_ms"),
    ("first token p99", "first_token_p99_ms"),
)
_COUNTS = ("ok", "failed", "rejected", "cancelled", "queued", "retried")


class ReplayReport(Mapping[str, Any]):
    """The answer of ``POST /replay``.

    ``happened`` is what the log says, ``baseline`` what the simulation makes of the strategy in force, and
    ``replay`` what it makes of the one asked for. Compare the last two: their difference is the strategy's,
    that of the first two is the simulation's own error.

    Args:
        report: As the server gave it.
    """

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = dict(report)

    def __getitem__(self, name: str) -> Any:
        return self._report[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._report)

    def __len__(self) -> int:
        return len(self._report)

    def __repr__(self) -> str:
        notes = "\n".join(f"- {line}" for line in self._notes())
        return f"{text_table(self._title(), self._columns(), self._rows())}\n\n{notes}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        notes = "".join(f"<li>{escape(line)}</li>" for line in self._notes())
        table = html_table(self._title(), self._columns(), self._rows())
        about = f"<details><summary>What this assumes</summary><ul>{notes}</ul></details>"
        return {"text/plain": repr(self), "text/html": table + about}

    def _title(self) -> str:
        seconds = self["until"] - self["since"]
        span = f"{seconds:.1f} seconds" if seconds < 90 else f"{seconds / 60:,.1f} minutes"
        left = sum(self["left_out"].values())
        out = f", {left:,} left out that no backend could answer" if left else ""
        return f"{self['requests']:,} requests of {span}{out}"

    def _columns(self) -> list[str]:
        return [
            "",
            "happened",
            f"simulated {self['baseline']['strategy']}",
            f"simulated {self['replay']['strategy']}",
        ]

    def _rows(self) -> list[list[str]]:
        runs = [self["happened"], self["baseline"], self["replay"]]
        backends = sorted({name for run in runs for name in run["share"]})
        return [
            *([label, *(_ms(run[name]) for run in runs)] for label, name in _FIGURES),
            *([name, *(f"{run[name]:,}" for run in runs)] for name in _COUNTS),
            *(
                [f"share of {name}", *(f"{run['share'].get(name, 0):.1%}" for run in runs)]
                for name in backends
            ),
        ]

    def _notes(self) -> list[str]:
        return list(self["assumptions"])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
