"""The backends: seen by readers, changed by administrators."""

from collections.abc import Mapping
from typing import ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN
from uia_lab.dialects.fields import Fields
from uia_lab.domain.backends import BackendInfo
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.doors.base import Door

CHANGES = ("enabled", "draining", "weight", "max_concurrency")


class BackendsDoor(Door):
    """``GET /backends?type=&status=&task=``."""

    def get(self) -> None:
        """The backends that match."""
        asked = {name: self.get_query_argument(name, None) or None for name in ("type", "status", "task")}
        found = self.manager.list_backends(asked["type"], asked["status"], asked["task"])
        self.answer({"backends": [backend.to_dict() for backend in found]})


class _OneBackend(Door):
    def found(self, backend_id: str) -> BackendInfo:
        """The backend.

        Raises:
            HTTPError: 404, with what there is.
        """
        backend = self.manager.get_backend(backend_id)
        if backend is None:
            known = suggestion(backend_id, (item.backend_id for item in self.manager.list_backends()))
            raise HTTPError(404, f"no backend {backend_id!r}.{known}")
        return backend


class BackendDoor(_OneBackend):
    """``GET|PATCH /backends/{id}``."""

    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"PATCH": (ADMIN,)}

    def get(self, backend_id: str) -> None:
        """The backend."""
        self.answer(self.found(backend_id).to_dict())

    def patch(self, backend_id: str) -> None:
        """Changes what is named out of CHANGES; everything is checked before anything changes."""
        self.found(backend_id)
        values = self.json_body()
        for name in values:
            if name not in CHANGES:
                raise BadRequest(f"{name} cannot be changed.{suggestion(name, CHANGES)}", param=name)
        fields = Fields(values)
        enabled, draining = fields.flag("enabled"), fields.flag("draining")
        weight = fields.number("weight", 1e-6, 1e6)
        limit = fields.whole("max_concurrency", 1, 1_000_000)
        both = values.get("enabled") is not None and values.get("draining") is not None
        if both and enabled == draining:
            raise BadRequest("enabled and draining contradict each other", param="draining")
        if weight is not None:
            self.manager.set_weight(backend_id, weight)
        if "max_concurrency" in values:
            self.manager.set_max_concurrency(backend_id, limit)
        if enabled or values.get("draining") is False:
            self.manager.enable(backend_id)
        elif draining or values.get("enabled") is False:
            self.manager.drain(backend_id)
        self.answer(self.found(backend_id).to_dict())


class ProbeDoor(_OneBackend):
    """``POST /backends/{id}/probe``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def post(self, backend_id: str) -> None:
        """Looks at the backend now and gives what it found."""
        self.found(backend_id)
        self.answer((await self.manager.probe(backend_id)).to_dict())


class StrategyDoor(Door):
    """``PUT /strategy {name}``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def put(self) -> None:
        """Changes how backends are chosen, now and after the next start."""
        name = Fields(self.json_body()).text("name", 128)
        if name is None:
            raise BadRequest("name is missing", param="name")
        await self.service.kept.set_strategy(name)
        self.answer({"strategy": self.manager.strategy_name})
