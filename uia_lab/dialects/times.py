"""Moments as clients write them."""

import math
from datetime import datetime
from typing import Any

from uia_lab.domain.errors import BadRequest


def moment(value: Any, name: str) -> float:
    """Seconds since the epoch, from a number, its text, or a date in ISO 8601; local time without an offset.

    Args:
        value: What was given.
        name: The field, for the error.

    Raises:
        BadRequest: It is neither.
    """
    seconds = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 1e15 else math.nan
    elif isinstance(value, str):
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = datetime.fromisoformat(value).timestamp()
            except (ValueError, OverflowError):
                seconds = math.nan
    if not math.isfinite(seconds):
        raise BadRequest(f"{name} must be seconds since the epoch, or a date in ISO 8601", param=name)
    return seconds
