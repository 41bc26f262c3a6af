"""The requests: those that run and those in the log, each seen by its owner and by administrators."""

from collections.abc import Mapping
from typing import ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN, INFER, READ
from uia_lab.dialects.times import moment
from uia_lab.domain.errors import BadRequest, StoreError
from uia_lab.doors.base import Door
from uia_lab.seen_requests import MOST, list_requests, one_request
from uia_lab.store.request_log import RequestLog


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


class RequestsDoor(SeenRequests):
    """``GET /requests?since=&until=&backend=&outcome=&limit=``."""

    async def get(self) -> None:
        """Those that match: first what runs, with no outcome yet, then the log, the newest first."""
        found = await list_requests(
            self.manager,
            self.request_log(),
            since=self._moment("since"),
            until=self._moment("until"),
            backend=self.get_query_argument("backend", None) or None,
            outcome=self.get_query_argument("outcome", None) or None,
            principal=self.owner,
            limit=self._limit(),
        )
        self.answer({"requests": found})

    def _moment(self, name: str) -> float | None:
        text = self.get_query_argument(name, None)
        return moment(text, name) if text else None

    def _limit(self) -> int:
        text = self.get_query_argument("limit", None) or "100"
        if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST:
            raise BadRequest(f"limit must be a whole number from 1 to {MOST}", param="limit")
        return int(text)


class RequestDoor(SeenRequests):
    """``GET|DELETE /requests/{id}``; to others than its owner and administrators it does not exist."""

    async def get(self, request_id: str) -> None:
        """All that is known of it: decision, attempts, usage."""
        found = await one_request(self.manager, self.request_log(), request_id, self.owner)
        if found is None:
            raise HTTPError(404, "no such request is known")
        self.answer(found)

    def delete(self, request_id: str) -> None:
        """Cancels it."""
        run = self.manager.running.get(request_id)
        mine = run is not None and self.owner in (None, run.request.principal)
        if not mine or not self.manager.cancel(request_id):
            raise HTTPError(404, "no such request is running")
        self.answer({"request_id": request_id, "status": "cancelled"})
