"""``DELETE /requests/{id}``: ends a running request."""

from typing import ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN, INFER
from uia_lab.doors.base import Door


class RequestDoor(Door):
    """One request that is running."""

    scope: ClassVar[str | None] = INFER

    def delete(self, request_id: str) -> None:
        """Cancels it, for its owner or an administrator; to others it does not exist."""
        owner = self.manager.owner_of(request_id)
        mine = owner is not None and (owner == self.principal.name or self.principal.allows(ADMIN))
        if not mine or not self.manager.cancel(request_id):
            raise HTTPError(404, "no such request is running")
        self.answer({"request_id": request_id, "status": "cancelled"})
