"""Typed errors for what an upstream answered, whichever dialect it speaks."""

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    ContextTooLong,
    InferenceError,
    ModelNotFound,
    NoBackendAvailable,
    NotAllowed,
    RateLimited,
    Unauthenticated,
)

LONGEST_MESSAGE = 500
_KINDS: dict[int, type[InferenceError]] = {
    401: Unauthenticated,
    402: NotAllowed,
    403: NotAllowed,
    404: ModelNotFound,
    408: BackendTimeout,
    429: RateLimited,
    503: NoBackendAvailable,
    504: BackendTimeout,
    # Anthropic's word for "too many requests for all of us just now".
    529: NoBackendAvailable,
}
_TOO_LONG = ("context_length", "context length", "context window", "prompt is too long", "maximum context")


def object_of(data: bytes) -> dict[str, Any]:
    """The JSON object that an upstream sent.

    Raises:
        BackendFailed: It is none.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BackendFailed(f"sent what is no JSON object: {data[:80]!r}")
    return value


def object_or_empty(data: bytes) -> dict[str, Any]:
    """The JSON object in the body of an error, or an empty one: proxies answer in HTML."""
    try:
        return object_of(data)
    except BackendFailed:
        return {}


def typed_error(
    status: int, message: object, headers: Mapping[str, str], code: object = None, param: object = None
) -> InferenceError:
    """The error for an answer with a status of 400 or more.

    Args:
        status: HTTP status.
        message: The upstream's text.
        headers: The answer's headers, in lower case or looked up without regard to case.
        code: The upstream's own code of the error.
        param: The field it names.
    """
    text = message[:LONGEST_MESSAGE] if isinstance(message, str) and message else "no explanation"
    kind = _KINDS.get(status) or (BadRequest if 400 <= status < 500 else BackendFailed)
    if kind is BadRequest and any(sign in f"{code} {text}".lower() for sign in _TOO_LONG):
        kind = ContextTooLong
    if kind is Unauthenticated:
        # Some upstreams repeat the key, or half of it.
        text = "the key it was called with is not accepted"
    field = param if isinstance(param, str) and kind is BadRequest else None
    return kind(f"answered {status}: {text}", param=field, retry_after=retry_after(headers))


def openai_error(status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
    """The typed error of an answer with a status of 400 or more, in OpenAI's envelope."""
    told = object_or_empty(body).get("error")
    error = told if isinstance(told, dict) else {"message": told}
    return typed_error(status, error.get("message"), headers, error.get("code"), error.get("param"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from ``retry-after-ms`` or ``retry-after`` (seconds or a date), if they say."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if not value:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (TypeError, ValueError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
