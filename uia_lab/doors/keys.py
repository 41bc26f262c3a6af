"""The scoped keys: made and revoked by administrators, each seen by its holder."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tornado.web import HTTPError

from uia_lab.access.principals import ADMIN, INFER, READ
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.times import moment
from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.keys import Limits
from uia_lab.doors.base import Door

_NUMBERS = ("requests_per_minute", "tokens_per_minute", "max_concurrent", "token_budget")
_FIELDS = ("name", "scopes", "models", "backend_types", "expires_at", *_NUMBERS)
_LARGEST = 10**12


class KeysDoor(Door):
    """``GET|POST /keys``.

    A key is ``{name, scopes?, models?, backend_types?, requests_per_minute?, tokens_per_minute?,
    max_concurrent?, token_budget?, expires_at?}``.
    """

    scopes: ClassVar[tuple[str, ...]] = (READ, INFER)
    method_scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {"POST": (ADMIN,)}

    def get(self) -> None:
        """All keys for administrators; for others the one they came by."""
        everybody = self.principal.allows(ADMIN)
        keys = [key for key in self.service.keys.all() if everybody or key.id == self.principal.key_id]
        self.answer({"keys": [key.to_dict() for key in keys]})

    async def post(self) -> None:
        """Makes a key; this answer is the only time it is shown."""
        values = self.json_body()
        fields = Fields(values)
        fields.only(_FIELDS)
        name = fields.text("name", 64)
        if name is None:
            raise BadRequest("name is missing", param="name")
        expires = values.get("expires_at")
        secret, key = await self.service.keys.create(
            name,
            fields.strings("scopes") or (),
            _limits(fields),
            None if expires is None else moment(expires, "expires_at"),
        )
        self.answer(key.to_dict() | {"key": secret}, 201)


class KeyDoor(Door):
    """``DELETE /keys/{id}``."""

    scopes: ClassVar[tuple[str, ...]] = (ADMIN,)

    async def delete(self, key_id: str) -> None:
        """Revokes a key at once: its requests and sockets end."""
        if not await self.service.keys.revoke(key_id):
            raise HTTPError(404, "no such key is known")
        self.answer({"id": key_id, "revoked": True})


def _limits(fields: Fields) -> Limits:
    given: dict[str, Any] = {name: fields.whole(name, 1, _LARGEST) for name in _NUMBERS}
    models, types = fields.strings("models"), fields.strings("backend_types")
    if types is not None:
        given["backend_types"] = tuple(member(BackendType, item, "backend_types").value for item in types)
    if models is not None:
        given["models"] = tuple(models)
    return Limits(**given)
