"""Fields of a JSON object, each read with its type and range; an error names the field."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from uia_lab.dialects.json_body import kind
from uia_lab.domain.errors import BadRequest, suggestion

_LARGEST = 2**63 - 1


class Fields:
    """Reads the fields of one object; null counts as absent, as OpenAI's clients send it.

    Args:
        values: The object.
        prefix: What error messages put before a field's name, for a nested object.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix

    def wrong(self, name: str, wanted: str) -> BadRequest:
        """The error for a field that is not what it has to be."""
        param = self.prefix + name
        return BadRequest(f"{param} must be {wanted}, not {kind(self.values.get(name))}", param=param)

    def only(self, known: Iterable[str], what: str = "is unknown") -> None:
        """Refuses a field that is none of the known ones."""
        names = tuple(known)
        for name in self.values:
            if name not in names:
                param = self.prefix + name
                raise BadRequest(f"{param} {what}.{suggestion(name, names)}", param=param)

    def text(self, name: str, longest: int = 4096) -> str | None:
        """A string that is not empty."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value or len(value) > longest:
            raise self.wrong(name, f"a string of 1 to {longest} characters")
        return value

    def flag(self, name: str) -> bool:
        """A boolean; absent is false."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def whole(self, name: str, low: int = -_LARGEST, high: int = _LARGEST) -> int | None:
        """An integer within bounds; 3.0 is one, as some clients have no integers."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"a whole number{_bounds(low, high)}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number within bounds."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        if not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value

    def objects(self, name: str) -> list[dict[str, Any]] | None:
        """A list of objects."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects")
        return value

    def strings(self, name: str) -> list[str] | None:
        """A list of strings."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        return value


def _bounds(low: int, high: int) -> str:
    if low == -_LARGEST:
        return ""
    return f" of at least {low}" if high == _LARGEST else f" from {low} to {high}"
