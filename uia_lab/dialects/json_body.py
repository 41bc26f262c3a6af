"""JSON in and out of the doors: any body becomes an object or a BadRequest, any result becomes bytes."""

import json
from typing import Any

import msgspec

from uia_lab.domain.errors import BadRequest

MAX_DEPTH = 64
MAX_PARTS = 200_000


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; of duplicate keys the last one counts.

    Args:
        body: UTF-8 JSON.

    Raises:
        BadRequest: Not JSON, not an object, nested more than ``MAX_DEPTH`` deep, or of too many parts.
    """
    # Counting brackets is far cheaper than the walk, and most bodies have too few to be deep.
    parts = body.count(b"[") + body.count(b"{")
    if parts > MAX_PARTS:
        # Millions of empty lists are a small body and seconds of work for everybody's loop.
        raise BadRequest(f"the body has {parts} lists and objects; at most {MAX_PARTS} are taken")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, not {kind(value)}")
    if parts > MAX_DEPTH:
        _check_depth(value)
    return value


def encode(value: Any) -> bytes:
    """JSON of a value, arrays and sets included; what has no JSON form is given as its text."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (UnicodeEncodeError, OverflowError, TypeError):
        # Lone surrogates, integers beyond 64 bits, and keys that are no strings.
        return json.dumps(_keyed(value), default=_plain, ensure_ascii=True).encode()


def kind(value: Any) -> str:
    """What a JSON value is, in JSON's words and without repeating a long one."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value if len(value) <= 40 else value[:40] + "...")
        case int():
            return str(value) if value.bit_length() <= 64 else "a huge number"
        case float():
            return str(value)
        case list():
            return "a list"
        case _:
            return "an object"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


def _keyed(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _keyed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_keyed(item) for item in value]
    return value
