"""Where a request carries its key."""

from collections.abc import Mapping

_SCHEME = "bearer "


def bearer(headers: Mapping[str, str], query_token: str | None = None) -> str | None:
    """The key a request presents, if any.

    Args:
        headers: The request's headers, looked up without regard to case by the mapping itself.
        query_token: Value of ``?token=``, only from doors whose clients cannot set headers: addresses end
            up in logs and histories.

    Returns:
        The key from ``Authorization: Bearer``, else from ``x-api-key``, else the query's.
    """
    authorization = headers.get("Authorization", "")
    if authorization[: len(_SCHEME)].lower() == _SCHEME:
        return authorization[len(_SCHEME) :].strip() or None
    return headers.get("x-api-key", "").strip() or query_token or None
