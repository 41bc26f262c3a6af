"""How the service is and was: ``/status``, ``/history``, ``/health``, ``/ready``, and what is not there."""

from typing import ClassVar

from tornado.web import HTTPError

from uia_lab._version import __version__
from uia_lab.domain.errors import BadRequest
from uia_lab.doors.base import Door
from uia_lab.manager.history import KEPT


class StatusDoor(Door):
    """``GET /status``: the status report, the state of each part of the service, and its version."""

    def get(self) -> None:
        """The report."""
        report = self.manager.get_backend_status_report()
        self.answer(report | {"parts": self.service.parts, "version": __version__})


class HistoryDoor(Door):
    """``GET /history?after=&limit=``: the last quarter of an hour, a sample a second."""

    def get(self) -> None:
        """The samples after one that is known already, oldest first."""
        self.answer(self.service.history.read(self._whole("after", 0), self._whole("limit", KEPT)))

    def _whole(self, name: str, default: int) -> int:
        text = self.get_query_argument(name, None) or str(default)
        if not text.isdecimal() or len(text) > 12:
            raise BadRequest(f"{name} must be a whole number from 0", param=name)
        return int(text)


class HealthDoor(Door):
    """``GET /health``: whether the process answers; the one door that is open to everybody."""

    scopes: ClassVar[tuple[str, ...]] = ()

    def get(self) -> None:
        """200, or 503 while it stops. It tells strangers nothing else."""
        stopping = self.open_doors.closing
        self.answer({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)


class ReadyDoor(Door):
    """``GET /ready``: whether requests can be served."""

    def get(self) -> None:
        """200, or 503 with the parts that are not there."""
        ready = bool(self.service.ready)
        self.answer({"ready": ready, "parts": self.service.parts}, 200 if ready else 503)


class NothingDoor(Door):
    """Every other address, in JSON as clients expect it; strangers are refused first."""

    def _nothing(self, *_: str) -> None:
        raise HTTPError(404, "there is nothing at this address")

    get = post = put = patch = delete = head = _nothing
