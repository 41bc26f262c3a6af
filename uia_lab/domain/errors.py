"""Every error a request can end with, as a small tree that doors translate into their dialect."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_COMPARED = 256


class InferenceError(Exception):
    """Base of the tree; the class says what happened, the message why and what to do.

    Args:
        message: What happened, why, and what the caller can do about it.
        param: Name of the request field at fault, if one is.
        retry_after: Seconds after which a retry makes sense, if known.

    Attributes:
        code: Stable machine-readable name.
        http_status: Status a REST door answers with.
        retryable: Whether another backend may be tried for the same request.
    """

    code = "inference_error"
    http_status = 500
    retryable = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class BadRequest(InferenceError):
    """The request is malformed; the field is named in ``param``."""

    code = "bad_request"
    http_status = 400


class Unsupported(InferenceError):
    """A well-formed parameter that no eligible backend offers."""

    code = "unsupported_parameter"
    http_status = 400


class ContextTooLong(InferenceError):
    """Prompt and requested output do not fit into the model's context."""

    code = "context_length_exceeded"
    http_status = 400


class Unauthenticated(InferenceError):
    """No identity, or one that does not verify."""

    code = "invalid_api_key"
    http_status = 401


class NotAllowed(InferenceError):
    """A known identity without the right to do this."""

    code = "not_allowed"
    http_status = 403


class ModelNotFound(InferenceError):
    """No registered backend serves the model."""

    code = "model_not_found"
    http_status = 404


class QueueFull(InferenceError):
    """Every candidate is busy and the queue is full, or waiting in it took too long."""

    code = "queue_full"
    http_status = 429
    retryable = True


class RateLimited(InferenceError):
    """The caller or the upstream account is over its limit."""

    code = "rate_limit_exceeded"
    http_status = 429
    retryable = True


class QuotaExceeded(RateLimited):
    """The caller's key has used up its token budget; waiting does not help."""

    code = "insufficient_quota"
    retryable = False


class BackendFailed(InferenceError):
    """A backend answered with a fault, died or broke its protocol."""

    code = "backend_failed"
    http_status = 502
    retryable = True


class StreamInterrupted(InferenceError):
    """A stream broke after content had been delivered, and could not be continued exactly."""

    code = "stream_interrupted"
    http_status = 502


class NoBackendAvailable(InferenceError):
    """Backends exist for this request, but none of them can serve it now."""

    code = "no_available_backend"
    http_status = 503
    retryable = True


class Overloaded(InferenceError):
    """The server works on as many requests as it may; backends are well."""

    code = "overloaded"
    http_status = 503
    retryable = True


class StoreError(InferenceError):
    """What was to be kept could not be, or what was kept could not be read."""

    code = "store_failed"
    http_status = 503


class BackendTimeout(InferenceError):
    """A backend was silent for longer than the attempt allows."""

    code = "backend_timeout"
    http_status = 504
    retryable = True


class DeadlineExceeded(InferenceError):
    """The request's own deadline passed."""

    code = "deadline_exceeded"
    http_status = 504


class InsufficientMemory(InferenceError):
    """A model does not fit; the message has the numbers."""

    code = "insufficient_memory"
    http_status = 507


class LoopDetected(InferenceError):
    """The request has already been through this instance, or through too many."""

    code = "loop_detected"
    http_status = 508


class Cancelled(InferenceError):
    """The caller, or an administrator, ended the request."""

    code = "cancelled"
    http_status = 499


def suggestion(name: str, known: Iterable[str]) -> str:
    """A sentence that lists what is known and names the closest match, for error messages.

    Args:
        name: What was asked for.
        known: What there is.
    """
    names = sorted(known)
    # Comparing takes its time: what is longer than any name is none that was mistyped.
    close = get_close_matches(name, names, n=1) if len(name) <= LONGEST_COMPARED else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."
