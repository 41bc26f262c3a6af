"""Answers of an upstream that are errors, as errors of ours; the shapes of every provider in one place."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from uia_lab.dialects.rate_limits import duration, retry_after
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    ContextTooLong,
    InferenceError,
    InsufficientMemory,
    LoopDetected,
    ModelNotFound,
    NoBackendAvailable,
    NotAllowed,
    QueueFull,
    RateLimited,
    Unauthenticated,
    Unsupported,
)
from uia_lab.domain.texts import one_line

LONGEST_MESSAGE = 500

_BY_STATUS: dict[int, type[InferenceError]] = {
    401: Unauthenticated,
    402: NotAllowed,
    403: NotAllowed,
    407: NotAllowed,
    408: BackendTimeout,
    429: RateLimited,
    498: RateLimited,
    503: NoBackendAvailable,
    504: BackendTimeout,
    507: InsufficientMemory,
    508: LoopDetected,
    529: NoBackendAvailable,
}
# Also the codes of another uia_lab, which says more exactly than its status what happened.
_BY_NAME: dict[str, type[InferenceError]] = {
    kind.code: kind
    for kind in (BadRequest, Unsupported, ContextTooLong, ModelNotFound, QueueFull, RateLimited)
} | {
    "authentication_error": Unauthenticated,
    "billing_error": NotAllowed,
    "billing_not_active": NotAllowed,
    "engine_overloaded_error": NoBackendAvailable,
    "exceed_context_size_error": ContextTooLong,
    "insufficient_quota": NotAllowed,
    "invalid_api_key": Unauthenticated,
    "invalid_prompt": BadRequest,
    "invalid_request_error": BadRequest,
    "loop_detected": LoopDetected,
    "model_not_available": ModelNotFound,
    "no_available_backend": NoBackendAvailable,
    "overloaded": NoBackendAvailable,
    "overloaded_error": NoBackendAvailable,
    "permission_denied": NotAllowed,
    "permission_error": NotAllowed,
    "rate_limit_error": RateLimited,
    "resource_exhausted": RateLimited,
    "server_is_overloaded": NoBackendAvailable,
    "slow_down": NoBackendAvailable,
    "string_above_max_length": ContextTooLong,
    "unavailable": NoBackendAvailable,
    "unavailable_error": NoBackendAvailable,
}
_CONTEXT = re.compile(
    r"context[ _](length|size|window)|maximum context|prompt is too long|too many (input )?tokens"
    r"|`inputs` (tokens|must have less)|input is too (long|large)"
    r"|exceeds the (model's )?maximum (input )?length",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"api[ _]?key (is )?(not valid|invalid|missing)|(invalid|incorrect) api[ _]?key", re.IGNORECASE
)
_MODEL = re.compile(r"\bmodels?\b", re.IGNORECASE)
# Another backend may have the model, more context, or an account in good standing.
_ELSEWHERE = (ContextTooLong, LoopDetected, ModelNotFound, Unauthenticated, NotAllowed)


def upstream_error(status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
    """The typed error of an answer with a status of 400 or more.

    Args:
        status: Its HTTP status.
        headers: Its headers, for how long to wait.
        body: Its body, or the beginning of it.
    """
    facts = _Facts(body)
    kind = _kind(status, facts)
    error = kind(f"answered {status}: {facts.message or 'nothing that explains it'}", param=facts.param)
    if error.retryable or status in (429, 503, 529):
        error.retry_after = retry_after(headers)
        if error.retry_after is None:
            error.retry_after = facts.retry_after
    return open_to_others(error)


def frame_error(data: bytes) -> InferenceError:
    """The typed error of a frame inside an answer that had begun with a good status."""
    facts = _Facts(data)
    # Nothing but the name tells there whose fault it is.
    blames_request = any(_BY_NAME.get(name) is BadRequest for name in facts.names)
    status = facts.status or (400 if blames_request or _CONTEXT.search(facts.message) else 500)
    error = _kind(status, facts)(
        f"sent an error inside its answer: {facts.message or 'nothing that explains it'}", param=facts.param
    )
    error.retry_after = facts.retry_after
    return open_to_others(error)


class _Facts:
    """What the body of an error says, whichever provider wrote it."""

    def __init__(self, body: bytes) -> None:
        self.message = ""
        self.names: list[str] = []
        self.param: str | None = None
        self.status: int | None = None
        self.retry_after: float | None = None
        try:
            value: Any = msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            text = body[:LONGEST_MESSAGE].decode(errors="replace").strip()
            # A proxy's page says nothing to anyone.
            self.message = "" if text.startswith("<") else one_line(text)
            return
        value = value[0] if isinstance(value, list) and value else value
        inner = value
        if isinstance(value, dict):
            inner = value.get("error") or value
            self._take(value)
        if isinstance(inner, dict):
            self._take(inner)
        elif isinstance(inner, str):
            self.message = inner
        self.message = one_line(self.message)[:LONGEST_MESSAGE]

    def _take(self, value: Mapping[str, Any]) -> None:
        for name in ("message", "detail"):
            if value.get(name):
                text = value[name]
                self.message = text if isinstance(text, str) else msgspec.json.encode(text).decode()
                break
        for name in ("code", "type", "status", "error_type"):
            said = value.get(name)
            if isinstance(said, str):
                # Some write the status as text.
                if said.isascii() and said.isdecimal() and len(said) == 3:
                    said = int(said)
                else:
                    self.names.append(said.lower())
            if isinstance(said, int) and 400 <= said < 600:
                self.status = said
        if isinstance(value.get("param"), str):
            self.param = value["param"][:128]
        details = value.get("details")
        for item in details if isinstance(details, list) else ():
            if isinstance(item, dict) and isinstance(item.get("retryDelay"), str):
                self.retry_after = duration(item["retryDelay"])


def _kind(status: int, facts: _Facts) -> type[InferenceError]:
    named = next((_BY_NAME[name] for name in facts.names if name in _BY_NAME), None)
    if status < 500 and status not in (401, 402, 403, 429) and _CONTEXT.search(facts.message):
        return ContextTooLong
    if status == 400 and _KEY.search(facts.message):
        return Unauthenticated
    if named is not None and named is not BadRequest:
        return named
    if status in (404, 410) and _MODEL.search(facts.message):
        return ModelNotFound
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status in (400, 413, 414, 415, 422) or (named is BadRequest and status < 500):
        return BadRequest
    return BackendFailed


def open_to_others(error: InferenceError) -> InferenceError:
    """The error, marked as one that another backend may not have, where that is so."""
    if isinstance(error, _ELSEWHERE):
        error.retryable = True
    return error
