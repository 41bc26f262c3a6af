"""The backends: seen by readers, changed by administrators."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN
from uia_lab.dialects.fields import Fields
from uia_lab.domain.backends import BackendInfo, BackendType, member
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.tasks import canonical_task
from uia_lab.doors.base import Door
from uia_lab.routing.strategies import known_strategies

CHANGES = ("enabled", "draining", "weight", "max_concurrency")
DESCRIBED = tuple(name for name in BackendDescription.__struct_fields__ if name != "enabled")
MOST = 1_000_000


class BackendsDoor(Door):
    """``GET /backends?type=&status=&task=``, ``POST /backends``.

    A description is ``{endpoint?, type?, id?, name?, dialect?, models?, tasks?, api_key_env?, weight?,
    max_concurrency?, options?}``.
    """

    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"POST": (ADMIN,)}

    def get(self) -> None:
        """The backends that match, and what discovery found, used or not, with its reason."""
        asked = {name: self.get_query_argument(name, None) or None for name in ("type", "status", "task")}
        found = self.manager.list_backends(asked["type"], asked["status"], asked["task"])
        self.answer(
            {
                "backends": [backend.to_dict() for backend in found],
                "found": [item.to_dict() for item in self.service.found()],
            }
        )

    async def post(self) -> None:
        """Registers a backend by its description and gives what the first look found; it is kept."""
        fields = Fields(self.json_body())
        fields.only(DESCRIBED)
        models, tasks = fields.strings("models"), fields.strings("tasks")
        description = BackendDescription(
            id=fields.text("id", 128) or "",
            type=member(BackendType, fields.text("type") or BackendType.API, "type").value,
            name=fields.text("name", 256),
            endpoint=fields.text("endpoint"),
            dialect=fields.text("dialect", 64),
            models=None if models is None else tuple(models),
            tasks=None if tasks is None else tuple(canonical_task(task) for task in tasks),
            api_key_env=fields.text("api_key_env", 256),
            weight=fields.number("weight", 1e-6, 1e6) or 1.0,
            max_concurrency=fields.whole("max_concurrency", 1, MOST),
            options=fields.mapping("options") or {},
        )
        self.answer((await self.service.backends.add(description, self.principal)).to_dict(), 201)


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
    """``GET|PATCH|DELETE /backends/{id}``.

    What changes is ``{enabled?, draining?, weight?, max_concurrency?}``.
    """

    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"PATCH": (ADMIN,), "DELETE": (ADMIN,)}

    def get(self, backend_id: str) -> None:
        """The backend, with its last errors and changes of status."""
        self.answer(self.found(backend_id).to_dict() | self.manager.troubles(backend_id))

    async def patch(self, backend_id: str) -> None:
        """Changes what is named; everything is checked before anything changes."""
        self.found(backend_id)
        values = self.json_body()
        fields = Fields(values)
        fields.only(CHANGES, "cannot be changed")
        enabled, draining = fields.flag("enabled"), fields.flag("draining")
        changes: dict[str, Any] = {}
        if (weight := fields.number("weight", 1e-6, 1e6)) is not None:
            changes["weight"] = weight
        if "max_concurrency" in values:
            changes["max_concurrency"] = fields.whole("max_concurrency", 1, MOST)
        if values.get("enabled") is not None and values.get("draining") is not None and enabled == draining:
            raise BadRequest("enabled and draining contradict each other", param="draining")
        if values.get("enabled") is not None or values.get("draining") is not None:
            changes["enabled"] = enabled if values.get("enabled") is not None else not draining
        self.answer((await self.service.backends.change(backend_id, **changes)).to_dict())

    async def delete(self, backend_id: str) -> None:
        """Takes it out, for the next start too; what it works on ends."""
        self.found(backend_id)
        await self.service.backends.remove(backend_id)
        self.answer({"id": backend_id, "removed": True})


class ProbeDoor(_OneBackend):
    """``POST /backends/{id}/probe``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def post(self, backend_id: str) -> None:
        """Looks at the backend now and gives what it found."""
        self.found(backend_id)
        self.answer((await self.manager.probe(backend_id)).to_dict())


class StrategyDoor(Door):
    """``GET /strategy``, ``PUT /strategy {name}``."""

    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"PUT": (ADMIN,)}

    def get(self) -> None:
        """The strategy in force, and those that are known."""
        self.answer({"strategy": self.manager.strategy_name, "known": known_strategies()})

    async def put(self) -> None:
        """Changes how backends are chosen, now and after the next start."""
        name = Fields(self.json_body()).text("name", 128)
        if name is None:
            raise BadRequest("name is missing", param="name")
        await self.service.kept.set_strategy(name)
        self.answer({"strategy": self.manager.strategy_name})
