"""How the service is: ``/status``, ``/health``, ``/ready``, and what is not there."""

from typing import ClassVar

from tornado.web import HTTPError

from uia_lab.doors.base import Door


class StatusDoor(Door):
    """``GET /status``: the status report, and the state of each part of the service."""

    def get(self) -> None:
        """The report."""
        self.answer(self.manager.get_backend_status_report() | {"parts": self.service.parts})


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
