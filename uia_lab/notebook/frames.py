"""Requests as a DataFrame."""

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from uia_lab.domain.errors import BadRequest

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Mapping[str, str] = {
    "began_at": "datetime64[us, UTC]",
    "id": "string",
    "principal": "string",
    "task": "string",
    "model": "string",
    "backend": "string",
    "outcome": "string",
    "error": "string",
    "stream": "boolean",
    "attempts": "Int64",
    "latency_ms": "float64",
    "queued_ms": "float64",
    "first_token_ms": "float64",
    "tokens_per_second": "float64",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "estimated": "boolean",
}
"""Columns of :meth:`uia_lab.Lab.requests` and their types."""


def needed(module: str) -> Any:
    """A module of the ``reports`` extra.

    Raises:
        BadRequest: It is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadRequest(
            f'{error.name or module} is not installed here; `pip install "uia-lab[reports]"` brings what '
            "tables and figures need"
        ) from None


def requests_frame(requests: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """The frame of requests as ``GET /requests`` lists them, one row each, in their order.

    Args:
        requests: The requests.

    Returns:
        COLUMNS; ``outcome`` is missing while a request runs.
    """
    pandas = needed("pandas")
    rows = [_row(item) for item in requests]
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    columns["began_at"] = pandas.to_datetime(columns["began_at"], unit="us", utc=True)
    frame: pd.DataFrame = pandas.DataFrame(columns).astype(dict(COLUMNS))
    return frame


def _row(item: Mapping[str, Any]) -> dict[str, Any]:
    usage = item.get("usage") or {}
    first = item.get("first_token_s")
    tokens, latency = usage.get("output_tokens"), item["latency_s"]
    # What came in one piece tells nothing of the tokens' rate.
    decoding = latency - first if first is not None and item.get("chunks") != 1 else 0.0
    return {
        "began_at": round(item["began_at"] * 1_000_000),
        "id": item["id"],
        "principal": item["principal"],
        "task": item["task"],
        "model": item["model"],
        "backend": item["backend_id"],
        "outcome": item["outcome"] or None,
        "error": item["error"],
        "stream": item["stream"],
        "attempts": len(item.get("attempts") or ()),
        "latency_ms": latency * 1000,
        "queued_ms": item["queued_s"] * 1000,
        "first_token_ms": None if first is None else first * 1000,
        "tokens_per_second": (tokens - 1) / decoding if tokens and tokens > 1 and decoding > 0 else None,
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": tokens,
        "estimated": usage.get("estimated"),
    }
