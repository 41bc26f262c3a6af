"""The aliases: read by readers, set by administrators, kept for the next start."""

from collections.abc import Mapping
from typing import ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN
from uia_lab.dialects.fields import Fields
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.doors.base import Door


class AliasesDoor(Door):
    """``GET /aliases``."""

    def get(self) -> None:
        """All aliases, by name."""
        aliases = self.manager.aliases
        self.answer({"aliases": [{"name": name, "targets": aliases[name]} for name in sorted(aliases)]})


class AliasDoor(Door):
    """``GET|DELETE /aliases/{name}``, ``PUT /aliases/{name} {targets}``."""

    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"PUT": (ADMIN,), "DELETE": (ADMIN,)}

    def get(self, name: str) -> None:
        """The alias."""
        self._answer(name)

    async def put(self, name: str) -> None:
        """Sets it to ``targets``, best first; what cannot be kept is not set either."""
        targets = Fields(self.json_body()).strings("targets")
        if targets is None:
            raise BadRequest(
                "targets is missing: a list of model, backend:model or type:model", param="targets"
            )
        await self.service.kept.set_alias(name, targets)
        self._answer(name)

    async def delete(self, name: str) -> None:
        """Forgets it, here and for the next start."""
        self._found(name)
        await self.service.kept.delete_alias(name)
        self.answer({"name": name, "deleted": True})

    def _found(self, name: str) -> tuple[str, ...]:
        aliases = self.manager.aliases
        if name not in aliases:
            raise HTTPError(404, f"no alias {name!r}.{suggestion(name, aliases)}")
        return aliases[name]

    def _answer(self, name: str) -> None:
        self.answer({"name": name, "targets": self._found(name)})
