"""``lab.hardware()``: what the machine that serves has, as a mapping that shows itself as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from uia_lab.notebook.tables import html_table, text_table

_COLUMNS = ("device", "name", "number formats", "free GiB", "of GiB")
_GIB = 1 << 30


class HardwareReport(Mapping[str, Any]):
    """The report of ``GET /hardware``.

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

    @property
    def _title(self) -> str:
        missing = "; ".join(f"{name}: {why}" for name, why in self._report["missing"].items())
        return f"{self._report['cores']} cores" + (f". Not there: {missing}" if missing else "")

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                device["id"],
                device["name"],
                ", ".join(device["dtypes"]),
                f"{device['free_bytes'] / _GIB:.1f}",
                f"{device['memory_bytes'] / _GIB:.1f}",
            )
            for device in self._report["devices"]
        ]

    def __repr__(self) -> str:
        return text_table(self._title, _COLUMNS, self._rows(), left=3)

    def _repr_html_(self) -> str:
        return html_table(self._title, _COLUMNS, self._rows(), left=3)
