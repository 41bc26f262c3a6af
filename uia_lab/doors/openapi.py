"""``GET /openapi.yaml``: the doors as OpenAPI 3.1 describes them, made from their table."""

import asyncio
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec

from uia_lab._version import __version__
from uia_lab.access.principals import INFER, READ
from uia_lab.doors.base import Door
from uia_lab.doors.operations import Operation, operations

_FORMS = ("/v1/audio/transcriptions",)


def document(found: Iterable[Operation], address: str = "/") -> dict[str, Any]:
    """The description.

    Args:
        found: What the doors offer.
        address: Where the paths begin on this server.
    """
    paths: dict[str, Any] = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "uia_lab", "version": __version__},
        "servers": [{"url": address}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A scoped key (uia-...), or in Jupyter its token.",
                }
            },
            "responses": {
                "Error": {
                    "description": "What happened, why and what to do; in /v1/messages in Anthropic's words.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "schemas": {"Error": _ERROR},
        },
    }


class OpenApiDoor(Door):
    """``GET /openapi.yaml``."""

    scopes: ClassVar[tuple[str, ...]] = (READ, INFER)

    async def get(self) -> None:
        """This description, with the address the paths have on this server."""
        # The table has this door in it.
        from uia_lab.doors.routes import routes

        described = document(operations(routes()), self.request.path.removesuffix("openapi.yaml"))
        self.set_header("Content-Type", "application/yaml")
        await self.finish(await asyncio.to_thread(msgspec.yaml.encode, described))


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}{operation.door.removesuffix('Door')}",
        "summary": operation.summary,
        # Each item is one way in: a key needs one of the scopes.
        "security": [{"key": [scope]} for scope in operation.scopes],
        "responses": {
            "2XX": {"description": "Done."},
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    where = [("path", name) for name in operation.parameters] + [("query", name) for name in operation.query]
    if where:
        described["parameters"] = [
            {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
            for place, name in where
        ]
    if operation.body:
        required = [name for name in operation.body if not name.endswith("?")]
        schema = {
            "type": "object",
            "properties": {name.rstrip("?"): {} for name in operation.body},
            **({"required": required} if required else {}),
        }
        media = "multipart/form-data" if operation.path in _FORMS else "application/json"
        described["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    return described
