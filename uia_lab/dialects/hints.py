"""Routing hints of a caller: the ``x-uia-*`` headers and the body's ``uia`` object."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import kind
from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.requests import RoutingHints

NAMES = ("backend", "prefer", "session", "priority", "timeout", "exclude")
_HEADERS = {name: f"x-uia-{name}" for name in NAMES}
_NONE = RoutingHints()
MAX_TIMEOUT_S = 86_400
MAX_PRIORITY = 1000
MAX_VIA = 16
MAX_EXCLUDED = 64
# What a header carries as it is: visible ASCII without the comma that stands between two of them.
_ID = re.compile(r"[!-+\--~]{1,128}")


def routing_hints(headers: Mapping[str, str], body: Mapping[str, Any] | None = None) -> RoutingHints:
    """What the caller says about who should serve; the body's word counts before a header's.

    Args:
        headers: ``x-uia-backend``, ``x-uia-prefer`` (comma list of types), ``x-uia-session``,
            ``x-uia-priority``, ``x-uia-timeout`` (seconds for everything),
            ``x-uia-exclude`` (comma list of ids of backends).
        body: The ``uia`` object with the same names.

    Raises:
        BadRequest: An unknown hint or one with a bad value; it is named.
    """
    given: dict[str, Any] = {}
    named: dict[str, str] = {}
    for name, header in _HEADERS.items():
        if header in headers and (value := headers[header].strip()) != "":
            given[name] = _number(value) if name in {"priority", "timeout"} else value
            named[name] = header
    if not given and not body:
        return _NONE
    for name, value in (body or {}).items():
        if name not in NAMES:
            raise BadRequest(f"uia.{name} is unknown.{suggestion(name, NAMES)}", param=f"uia.{name}")
        if value is not None:
            given[name] = value
            named[name] = f"uia.{name}"
    fields = Fields({named[name]: value for name, value in given.items()})
    timeout = fields.number(named.get("timeout", "timeout"), 0, MAX_TIMEOUT_S)
    if timeout == 0:
        raise fields.wrong(named["timeout"], "more than 0 seconds")
    return RoutingHints(
        preferred_types=_types(given.get("prefer"), named.get("prefer", "prefer")),
        backend_id=fields.text(named.get("backend", "backend"), 256),
        session_id=fields.text(named.get("session", "session"), 256),
        priority=fields.whole(named.get("priority", "priority"), -MAX_PRIORITY, MAX_PRIORITY) or 0,
        deadline_s=timeout,
        excluded_backends=_excluded(given.get("exclude"), named.get("exclude", "exclude")),
    )


def passed_through(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Instance ids the request has passed, from ``x-uia-via``.

    Raises:
        BadRequest: See :func:`instance_ids`.
    """
    if "x-uia-via" not in headers:
        return ()
    items = (item for part in headers.get("x-uia-via", "").split(",") if (item := part.strip()))
    return instance_ids(items, "x-uia-via")


def instance_ids(items: Iterable[str], param: str) -> tuple[str, ...]:
    """Ids of instances as they go from server to server in a header.

    Args:
        items: The ids.
        param: Who gave them, for the error.

    Raises:
        BadRequest: More of them than any honest chain has, or one that no header carries.
    """
    ids = tuple(items)
    if len(ids) > MAX_VIA or not all(_ID.fullmatch(item) for item in ids):
        raise BadRequest(
            f"{param} must be at most {MAX_VIA} ids of 1 to 128 visible ASCII characters without a comma",
            param=param,
        )
    return ids


def _types(value: Any, name: str) -> tuple[BackendType, ...]:
    if value is None:
        return ()
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadRequest(f"{name} must be a list of backend types, not {kind(value)}", param=name)
    if len(items) > len(BackendType):
        raise BadRequest(f"{name} must be at most {len(BackendType)} backend types", param=name)
    return tuple(dict.fromkeys(member(BackendType, item.strip(), name) for item in items if item.strip()))


def _excluded(value: Any, name: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadRequest(f"{name} must be a list of ids of backends, not {kind(value)}", param=name)
    if len(items) > MAX_EXCLUDED or any(len(item) > 256 for item in items):
        raise BadRequest(f"{name} must be at most {MAX_EXCLUDED} ids of backends", param=name)
    return frozenset(stripped for item in items if (stripped := item.strip()))


def _number(text: str) -> Any:
    # What is no number stays text, so that the field's own check names it. Long ones are never converted.
    try:
        return float(text) if len(text) <= 32 else text
    except ValueError:
        return text
