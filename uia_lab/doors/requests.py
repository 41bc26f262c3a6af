"""The requests: those that run and those in the log, each seen by its owner and by administrators."""

from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import msgspec
from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN, INFER, READ
from uia_lab.dialects.times import moment
from uia_lab.domain.errors import BadRequest, StoreError, suggestion
from uia_lab.domain.records import RequestRecord
from uia_lab.doors.base import Door
from uia_lab.routing.figures import Ending
from uia_lab.store.request_log import RequestLog

OUTCOMES = get_args(Ending)
MOST = 1000
# A list is to be read at a glance; these are shown with the one request they belong to.
_LONG = ("decision", "inputs", "result")


class SeenRequests(Door):
    """Requests as far as their owner, or an administrator, may see them."""

    # Those who may only infer see their own.
    scopes: ClassVar[tuple[str, ...]] = (READ, INFER)
    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"DELETE": (INFER,)}

    @property
    def owner(self) -> str | None:
        """Whose requests may be seen; None for everybody's."""
        return None if self.principal.allows(ADMIN) else self.principal.name

    def request_log(self) -> RequestLog:
        """The log.

        Raises:
            StoreError: It is not open.
        """
        if self.service.request_log is None:
            why = self.service.parts.get("store", {}).get("state", "not started")
            raise StoreError(f"the request log is not there: the store is {why}")
        return self.service.request_log

    def running(self) -> list[dict[str, Any]]:
        """What runs and may be seen, that which began last first."""
        runs = [
            run
            for run in list(self.manager.running.values())
            if self.owner is None or run.request.principal == self.owner
        ]
        runs.sort(key=lambda run: run.wall, reverse=True)
        now = self.manager.clock()
        return [_plain(run.summary(self.manager.instance_id, now)) | {"outcome": None} for run in runs]


class RequestsDoor(SeenRequests):
    """``GET /requests?since=&backend=&outcome=&limit=``."""

    async def get(self) -> None:
        """Those that match: first what runs, with no outcome yet, then the log, the newest first."""
        since, limit = self._since(), self._limit()
        backend = self.get_query_argument("backend", None) or None
        outcome = self.get_query_argument("outcome", None) or None
        if outcome is not None and outcome not in OUTCOMES:
            raise BadRequest(
                f"outcome {outcome!r} is unknown.{suggestion(outcome, OUTCOMES)}", param="outcome"
            )
        found = [
            item
            for item in ([] if outcome is not None else self.running())
            if (since is None or item["began_at"] >= since)
            and (backend is None or item["backend_id"] == backend)
        ]
        records = await self.request_log().find(since, backend, outcome, self.owner, limit)
        # One may have ended, and reached the log, while that was asked.
        ended = {record.id for record in records}
        found = [item for item in found if item["id"] not in ended] + [_plain(record) for record in records]
        short = [{name: value for name, value in item.items() if name not in _LONG} for item in found[:limit]]
        self.answer({"requests": short})

    def _since(self) -> float | None:
        text = self.get_query_argument("since", None)
        if not text:
            return None
        return moment(text, "since")

    def _limit(self) -> int:
        text = self.get_query_argument("limit", None) or "100"
        if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST:
            raise BadRequest(f"limit must be a whole number from 1 to {MOST}", param="limit")
        return int(text)


class RequestDoor(SeenRequests):
    """``GET|DELETE /requests/{id}``; to others than its owner and administrators it does not exist."""

    async def get(self, request_id: str) -> None:
        """All that is known of it: decision, attempts, usage."""
        for item in self.running():
            if item["id"] == request_id:
                self.answer(item)
                return
        record = await self.request_log().get(request_id, self.owner)
        if record is None:
            raise HTTPError(404, "no such request is known")
        self.answer(_plain(record))

    def delete(self, request_id: str) -> None:
        """Cancels it."""
        run = self.manager.running.get(request_id)
        mine = run is not None and self.owner in (None, run.request.principal)
        if not mine or not self.manager.cancel(request_id):
            raise HTTPError(404, "no such request is running")
        self.answer({"request_id": request_id, "status": "cancelled"})


def _plain(record: RequestRecord) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(record)
    counts = {name: plain.pop(name) for name in ("input_tokens", "output_tokens", "estimated")}
    return plain | {"usage": counts | {"total_tokens": record.input_tokens + record.output_tokens}}
