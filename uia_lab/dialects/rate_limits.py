"""How long an upstream asks to be left alone, from the headers of its answer."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_KINDS = ("requests", "tokens", "input-tokens", "output-tokens")
_PREFIXES = ("x-ratelimit", "anthropic-ratelimit")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds after which a retry makes sense; None where the headers do not say.

    ``retry-after-ms`` and ``retry-after`` (seconds or a date) count first; then the time until a limit that
    is used up starts anew (``x-ratelimit-reset-tokens: 6m0s``,
    ``anthropic-ratelimit-requests-reset: <date>``).

    Args:
        headers: Those of the answer, their names in any case.
        now: Seconds since the epoch, for dates.
    """
    found = {name.lower(): value.strip() for name, value in headers.items()}
    at = time.time() if now is None else now
    wait = _scaled(found.get("retry-after-ms"), 0.001)
    if wait is None:
        wait = _wait(found.get("retry-after"), at)
    if wait is not None:
        return wait
    waits = [
        wait
        for prefix in _PREFIXES
        for kind in _KINDS
        if _used_up(found, prefix, kind)
        and (wait := _wait(found.get(_named(prefix, kind, "reset")), at)) is not None
    ]
    return max(waits, default=None)


def duration(text: str) -> float | None:
    """Seconds of ``6m0s``, ``250ms`` or ``1.5``; None for anything else."""
    if (plain := _scaled(text, 1.0)) is not None:
        return plain
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _wait(text: str | None, now: float) -> float | None:
    if not text or len(text) > 64:
        return None
    if (seconds := duration(text)) is not None:
        # Some give the moment in seconds since the epoch in place of a duration.
        return seconds if seconds < 1e9 else max(0.0, seconds - now)
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = read(text)
        except (ValueError, TypeError, IndexError):
            continue
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    return None


def _scaled(text: str | None, scale: float) -> float | None:
    try:
        value = float(text) * scale if text and len(text) <= 32 else -1.0
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _used_up(headers: Mapping[str, str], prefix: str, kind: str) -> bool:
    return headers.get(_named(prefix, kind, "remaining")) == "0"


def _named(prefix: str, kind: str, what: str) -> str:
    return f"{prefix}-{kind}-{what}" if prefix.startswith("anthropic") else f"{prefix}-{what}-{kind}"
