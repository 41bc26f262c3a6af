"""Makes a hybrid backend of the descriptions of its parts."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from uia_lab.backends.hybrid import HybridBackend
from uia_lab.domain.backends import Backend, BackendType
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest

FIELDS = ("type", "endpoint", "dialect", "models", "tasks", "api_key_env", "max_concurrency", "options")
MOST = 8
_PROTOCOLS = {BackendType.API: "http"}


class Factory(Protocol):
    """Who makes the parts."""

    async def complete(self, description: BackendDescription) -> BackendDescription:
        """The description with what it leaves open."""

    def build(self, description: BackendDescription) -> Backend:
        """The backend of a complete description."""


class HybridMaker:
    """Knows what a description of type ``hybrid`` stands for: ``options.parts``, the best first.

    Args:
        factory: Makes the parts.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory

    def stem(self, description: BackendDescription) -> str:
        """What an id begins with where nobody gave one."""
        return "-".join(["hybrid", *dict.fromkeys(part.type for part in _parts(description))])

    async def complete(self, description: BackendDescription) -> BackendDescription:
        """The description with what it and its parts leave open.

        Raises:
            InferenceError: As for each of the parts.
        """
        parts = [await self._factory.complete(part) for part in _parts(description)]
        kept = [{name: msgspec.to_builtins(getattr(part, name)) for name in FIELDS} for part in parts]
        return msgspec.structs.replace(
            description,
            type=BackendType.HYBRID.value,
            name=description.name or description.id,
            max_concurrency=description.max_concurrency or parts[0].max_concurrency,
            options={"parts": kept},
        )

    def build(self, description: BackendDescription) -> HybridBackend:
        """The backend of a complete description.

        Raises:
            InferenceError: As for each of the parts.
        """
        made: dict[str, Backend] = {}
        for part in _parts(description):
            protocol = _PROTOCOLS.get(BackendType(part.type), part.type)
            number = 1
            while (name := protocol if number == 1 else f"{protocol}-{number}") in made:
                number += 1
            made[name] = self._factory.build(part)
        return HybridBackend(made)

    async def close(self) -> None:
        """Nothing is open."""


def _parts(description: BackendDescription) -> list[BackendDescription]:
    parts = description.options.get("parts")
    if description.options.keys() != {"parts"} or not isinstance(parts, (list, tuple)):
        raise _wrong("parts", "is needed, and nothing else: a list of backends, the best first")
    if not 2 <= len(parts) <= MOST:
        raise _wrong("parts", f"must be 2 to {MOST} backends")
    return [_part(description, number, fields) for number, fields in enumerate(parts)]


def _part(description: BackendDescription, number: int, fields: Any) -> BackendDescription:
    place = f"parts.{number}"
    if not isinstance(fields, Mapping):
        raise _wrong(place, "must be an object")
    if unknown := fields.keys() - set(FIELDS):
        raise _wrong(f"{place}.{min(unknown)}", f"is unknown. Known: {', '.join(FIELDS)}.")
    given = {name: value for name, value in fields.items() if value is not None}
    # What all of them have in common may be said once.
    shared = {"models": description.models, "tasks": description.tasks}
    given = {name: value for name, value in shared.items() if value is not None} | given
    try:
        part = msgspec.convert({"type": "api", **given, "id": description.id}, BackendDescription)
    except msgspec.ValidationError as error:
        raise _wrong(place, f"does not fit: {error}") from None
    if part.type == BackendType.HYBRID:
        raise _wrong(f"{place}.type", "must not be hybrid again")
    return part


def _wrong(name: str, what: str) -> BadRequest:
    return BadRequest(f"options.{name} {what}", param=f"options.{name}")
