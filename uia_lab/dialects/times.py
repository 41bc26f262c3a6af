"""Moments as clients write them."""

import math
from datetime import UTC, datetime
from typing import Any

from uia_lab.domain.errors import BadRequest

# What a date can be made of again, wherever it is shown.
_FIRST = datetime.min.replace(tzinfo=UTC).timestamp()
_LAST = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def moment(value: Any, name: str) -> float:
    """Seconds since the epoch, from a number, its text, or a date in ISO 8601; local time without an offset.

    Args:
        value: What was given.
        name: The field, for the error.

    Raises:
        BadRequest: It is neither, or not within the years that dates have.
    """
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= _LAST else math.nan
    elif isinstance(value, str):
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = datetime.fromisoformat(value).timestamp()
            except (ValueError, OverflowError):
                seconds = math.nan
    if not _FIRST <= seconds <= _LAST:
        raise BadRequest(
            f"{name} must be seconds since the epoch, or a date in ISO 8601, of the years 1 to 9999",
            param=name,
        )
    return seconds
