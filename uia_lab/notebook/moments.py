"""Moments as people write them in a notebook."""

import time
from datetime import datetime, timedelta
from typing import TypeAlias

from uia_lab.dialects.times import moment

Moment: TypeAlias = datetime | timedelta | str | float
"""A date, how long ago, ISO 8601, or seconds since the epoch."""


def epoch(value: Moment | None, name: str) -> float | None:
    """Seconds since the epoch; None stays None.

    Args:
        value: The moment; a date without a zone is local time.
        name: The argument, for the error.

    Raises:
        BadRequest: It is no moment.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        return time.time() - value.total_seconds()
    return moment(value.timestamp() if isinstance(value, datetime) else value, name)
