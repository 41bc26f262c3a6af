"""A record as a row of the table, and back."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from uia_lab.domain.records import RequestRecord

KEPT_BYTES = 262_144
_COLUMNS = RequestRecord.__struct_fields__
_JSON = frozenset({"decision", "attempts", "inputs", "result"})

INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
SELECT = f"SELECT {', '.join(_COLUMNS)} FROM requests"  # noqa: S608 - names of our own fields


def to_row(record: RequestRecord) -> tuple[Any, ...]:
    """The values of a record in the order of ``INSERT``."""
    return tuple(_value(name, getattr(record, name)) for name in _COLUMNS)


def from_row(row: Sequence[Any]) -> RequestRecord:
    """The record of a row as ``SELECT`` gives it."""
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    # Not strict: SQLite has no booleans.
    return msgspec.convert(values, RequestRecord, strict=False)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str) and name not in _JSON:
        # A lone surrogate, which JSON can bring in, has no UTF-8.
        return value.encode("utf-8", "replace").decode()
    if name not in _JSON or value is None:
        return value
    text = _json(value)
    if len(text) > KEPT_BYTES and name in ("inputs", "result"):
        return _json(f"{text[:KEPT_BYTES]}... ({len(text)} characters of JSON)")
    return text


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except (ArithmeticError, TypeError, ValueError):
        # Lone surrogates, integers beyond 64 bits, and keys that are no strings.
        return json.dumps(msgspec.to_builtins(value, enc_hook=str, str_keys=True), default=str)
