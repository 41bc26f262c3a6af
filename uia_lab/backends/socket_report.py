"""What a uia_lab server elsewhere says of itself in its status, as far as it can be believed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeGuard

from uia_lab.backends.listing import LONGEST_NAME, MOST_MODELS
from uia_lab.domain.tasks import TASKS

MOST_BACKENDS = 1000
LARGEST_LOAD = 1_000_000


@dataclass(frozen=True, slots=True)
class SocketReport:
    """A server's status.

    Args:
        instance_id: What it calls itself; empty where that is no name.
        serves: Whether a backend there can serve now.
        models: Models of those.
        tasks: Tasks of those.
        load: Requests under way there; None where it does not say.
    """

    instance_id: str
    serves: bool
    models: frozenset[str]
    tasks: frozenset[str]
    load: int | None


def report_of(message: Any) -> SocketReport:
    """The report in a ``status`` message; whatever in it is not what it should be is left out."""
    report = message.get("backend_status") if isinstance(message, dict) else None
    if not isinstance(report, dict):
        report = {}
    found = [
        item
        for item in _items(report.get("backends"), MOST_BACKENDS)
        if isinstance(item, dict) and item.get("routable")
    ]
    load, name = report.get("in_flight"), report.get("instance_id")
    return SocketReport(
        name if _is_name(name) else "",
        bool(found),
        frozenset(islice(_names(found, "models"), MOST_MODELS)),
        TASKS.intersection(_names(found, "tasks")),
        load if type(load) is int and 0 <= load <= LARGEST_LOAD else None,
    )


def _names(found: list[dict[str, Any]], field: str) -> Iterator[str]:
    return (name for item in found for name in _items(item.get(field), MOST_MODELS) if _is_name(name))


def _items(value: Any, most: int) -> list[Any]:
    return value[:most] if isinstance(value, list) else []


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()
