"""Errors in OpenAI's envelope."""

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 499: "cancelled"}


def error_type(status: int) -> str:
    """The ``type`` OpenAI gives errors of an HTTP status; a 404 is an invalid request there."""
    return _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")


def envelope(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, Any]]:
    """The body of an error answer.

    Args:
        status: HTTP status it goes with.
        message: What happened and what to do.
        code: Stable machine-readable name.
        param: Field at fault.
    """
    return {"error": {"message": message, "type": error_type(status), "param": param, "code": code}}
