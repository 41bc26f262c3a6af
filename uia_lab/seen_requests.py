"""The requests as people look at them: those that run and those in the log, as one list."""

from typing import Any, get_args

from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.routing.figures import Ending
from uia_lab.store.request_log import RequestLog

OUTCOMES = get_args(Ending)
MOST = 1000
# A list is to be read at a glance; these are shown with the one request they belong to.
_LONG = ("decision", "inputs", "result")


async def list_requests(
    manager: BackendManager,
    log: RequestLog,
    *,
    since: float | None = None,
    until: float | None = None,
    backend: str | None = None,
    outcome: str | None = None,
    principal: str | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Those that match all that is given: first what runs, with no outcome yet, then the log, newest first.

    Args:
        manager: Who runs them.
        log: Who remembers them.
        since: Only what began then or later, in seconds since the epoch.
        until: Only what began then or before.
        backend: Only what this backend answers, or tried last.
        outcome: Only ``ok``, ``failed``, ``cancelled`` or ``rejected``.
        principal: Only what this principal asked.
        limit: How many at most, up to MOST.

    Raises:
        BadRequest: An unknown outcome, or a limit out of range.
        StoreError: The log cannot be read.
    """
    if outcome is not None and outcome not in OUTCOMES:
        raise BadRequest(f"outcome {outcome!r} is unknown.{suggestion(outcome, OUTCOMES)}", param="outcome")
    if not 1 <= limit <= MOST:
        raise BadRequest(f"limit must be a whole number from 1 to {MOST}", param="limit")
    running = [] if outcome is not None else _running(manager, principal)
    found = [
        item
        for item in running
        if (since is None or item["began_at"] >= since)
        and (until is None or item["began_at"] <= until)
        and (backend is None or item["backend_id"] == backend)
    ]
    records = await log.find(since, backend, outcome, principal, limit, until)
    # One may have ended, and reached the log, while that was asked.
    ended = {record.id for record in records}
    found = [item for item in found if item["id"] not in ended] + [record.to_dict() for record in records]
    return [{name: value for name, value in item.items() if name not in _LONG} for item in found[:limit]]


async def one_request(
    manager: BackendManager, log: RequestLog, request_id: str, principal: str | None = None
) -> dict[str, Any] | None:
    """All that is known of one request: decision, attempts, usage; None where there is none.

    Args:
        manager: Who may run it.
        log: Who may remember it.
        request_id: Its id.
        principal: Who must have asked it; anybody when absent.

    Raises:
        StoreError: The log cannot be read.
    """
    for item in _running(manager, principal):
        if item["id"] == request_id:
            return item
    record = await log.get(request_id, principal)
    return None if record is None else record.to_dict()


def _running(manager: BackendManager, principal: str | None) -> list[dict[str, Any]]:
    """What runs and may be seen, that which began last first."""
    runs = [
        run
        for run in list(manager.running.values())
        if principal is None or run.request.principal == principal
    ]
    runs.sort(key=lambda run: run.wall, reverse=True)
    now = manager.clock()
    return [run.summary(manager.instance_id, now).to_dict() | {"outcome": None} for run in runs]
