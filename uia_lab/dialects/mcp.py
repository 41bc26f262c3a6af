"""What an MCP message says beyond MCP: the instances a request has passed, and which error ended it.

Both stand in ``_meta``, which MCP keeps for such things: ``via`` in that of a call, ``uia-lab/error`` in that
of a result. The tool that routes a request takes and gives what ``/ws`` does, under the same names.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from uia_lab.dialects.hints import instance_ids
from uia_lab.dialects.websocket_answers import error_fields
from uia_lab.domain.errors import BadRequest, InferenceError

ROUTE = "route_inference_request"
SUPPORTED = "get_supported_tasks"
VIA = "via"
ERROR = "uia-lab/error"


def via_of(meta: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Instances a call has passed.

    Args:
        meta: The call's ``_meta``.

    Raises:
        BadRequest: No list of ids of instances.
    """
    value = (meta or {}).get(VIA)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest("_meta.via must be a list of strings", param=VIA)
    return instance_ids(value, "_meta.via")


def call_meta(via: Sequence[str]) -> dict[str, Any]:
    """The ``_meta`` of a call that has passed these instances."""
    return {VIA: list(via)}


def error_meta(error: InferenceError) -> dict[str, Any]:
    """The ``_meta`` of a result that is an error, so that programs need not read its text."""
    return {ERROR: {"message": error.message, **error_fields(error)}}


def error_in(meta: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What :func:`error_meta` wrote, if another uia_lab did."""
    found = (meta or {}).get(ERROR)
    return found if isinstance(found, Mapping) else None


def quieten() -> None:
    """Keeps out of the log what the SDK says of each request, session id and line of a server's banner.

    Whoever has set a level for one of its loggers keeps it.
    """
    for name, level in (
        ("httpx2", logging.WARNING),
        ("mcp", logging.WARNING),
        ("mcp.client.stdio", logging.CRITICAL),
    ):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(level)
