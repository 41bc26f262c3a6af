"""Errors in Anthropic's envelope."""

from typing import Any

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """The ``type`` Anthropic gives errors of an HTTP status."""
    return _TYPES.get(status) or ("api_error" if status >= 500 or status == 499 else "invalid_request_error")


def envelope(status: int, message: str, request_id: str) -> dict[str, Any]:
    """The body of an error answer, and the data of an ``error`` event.

    Args:
        status: HTTP status it goes with.
        message: What happened and what to do.
        request_id: Id of the request.
    """
    return {
        "type": "error",
        "error": {"type": error_type(status), "message": message},
        "request_id": request_id,
    }
