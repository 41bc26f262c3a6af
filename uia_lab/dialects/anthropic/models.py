"""``GET /v1/models`` as Anthropic's clients read it."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any


def model_object(name: str, created: int) -> dict[str, Any]:
    """One model.

    Args:
        name: Its name.
        created: Unix time given as its creation.
    """
    when = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": when,
        "lifecycle": "active",
    }


def model_list(names: Iterable[str], created: int) -> dict[str, Any]:
    """All models, by name, on one page."""
    data = [model_object(name, created) for name in sorted(names)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}
