"""Backends that people register by their address: built, looked at, kept, and restored at the next start."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from uia_lab.access.principals import Principal
from uia_lab.backends.factory import BackendFactory
from uia_lab.domain.backends import BackendInfo
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, InferenceError, NotAllowed
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.store.values import ValueStore

log = logging.getLogger(__name__)


class KeptBackends:
    """The backends of a manager that are known by a description.

    Args:
        manager: Where they are registered.
        factory: Builds them.

    Attributes:
        table: Where they are kept; None while there is no store.
        added: Called when one was added, so that what was found at the same address gives way.
    """

    def __init__(self, manager: BackendManager, factory: BackendFactory) -> None:
        self.table: ValueStore[BackendDescription] | None = None
        self.added: Callable[[], None] | None = None
        self._manager = manager
        self._factory = factory
        self._known: dict[str, BackendDescription] = {}
        # What is looked at and then changed must not change in between.
        self._turn = asyncio.Lock()

    async def add(self, description: BackendDescription, by: Principal | None = None) -> BackendInfo:
        """Registers a backend, looks at it and keeps it.

        Args:
            description: What it is; an empty id is made from the address.
            by: Who asks for it; this process's own user when absent.

        Returns:
            What the first look found.

        Raises:
            BadRequest: A field is wrong, or the id is taken.
            NotAllowed: The endpoint may not be called, or who asks may not have programs run.
            NoBackendAvailable: Nobody answers there, and nobody said who should.
            StoreError: It could not be kept; it is not registered either.
        """
        if by is not None and by.is_handed_out and description.runs_programs:
            raise NotAllowed(
                "a scoped key, an administrator's too, cannot have this machine run a command: add it from a "
                "notebook or with Jupyter's own token; a known tool can be added by its name (options.tool)",
                param="options",
            )
        if not description.id:
            description = msgspec.structs.replace(description, id=self._free_id(description))
        self._require_free(description.id)
        description = await self._factory.complete(description)
        async with self._turn:
            self._require_free(description.id)
            self._register(description)
            try:
                if self.table is not None:
                    await self.table.put(description.id, description)
            except BaseException:
                self._forget(description.id)
                raise
        if self.added is not None:
            self.added()
        return await self._manager.probe(description.id)

    async def configure(self, given: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """Registers the backends of the configuration, which keeps them itself.

        Args:
            given: The fields of each.

        Returns:
            The ids of those that are registered, and why the others are not.
        """
        registered, refused = [], []
        for number, fields in enumerate(given):
            name = str(fields.get("id") or f"number {number + 1}")
            try:
                description = msgspec.convert({"id": "", "type": "api", **fields}, BackendDescription)
                if not description.id:
                    description = msgspec.structs.replace(description, id=self._free_id(description))
                self._require_free(description.id)
                self._register(await self._factory.complete(description), kept=False)
                registered.append(description.id)
            except (InferenceError, msgspec.ValidationError) as error:
                refused.append(f"{name}: {error}")
        return registered, refused

    async def remove(self, backend_id: str) -> bool:
        """Takes a backend out, for the next start too; False if there was none.

        Raises:
            StoreError: It could not be written; the backend stays.
        """
        async with self._turn:
            if self.table is not None:
                await self.table.delete(backend_id)
            return self._forget(backend_id)

    async def change(self, backend_id: str, **changes: Any) -> BackendInfo:
        """Changes ``enabled``, ``weight`` or ``max_concurrency``; kept where the backend is.

        Raises:
            BadRequest: No such backend, or a value out of range.
            StoreError: It could not be written, but is in force.
        """
        manager = self._manager
        if "weight" in changes:
            manager.set_weight(backend_id, changes["weight"])
        if "max_concurrency" in changes:
            manager.set_max_concurrency(backend_id, changes["max_concurrency"])
        if "enabled" in changes:
            (manager.enable if changes["enabled"] else manager.drain)(backend_id)
        async with self._turn:
            if (known := self._known.get(backend_id)) is not None:
                known = self._known[backend_id] = msgspec.structs.replace(known, **changes)
                if self.table is not None:
                    await self.table.put(backend_id, known)
        info = manager.get_backend(backend_id)
        if info is None:
            raise BadRequest(f"the backend {backend_id!r} was removed meanwhile", param="backend_id")
        return info

    async def restore(self, table: ValueStore[BackendDescription]) -> None:
        """Registers what a table keeps; each is UNKNOWN until it is looked at.

        Raises:
            StoreError: The table cannot be read.
        """
        self.table = table
        for description in (await table.load()).values():
            try:
                self._register(description)
            except InferenceError as error:
                # It stays kept: what is wrong may be a setting that comes back.
                log.warning("the backend %r is kept but not registered: %s", description.id, error.message)

    async def close(self) -> None:
        """Closes the connections of every backend by address."""
        self.table = None
        await self._factory.close()

    def _register(self, description: BackendDescription, *, kept: bool = True) -> None:
        instance = self._factory.build(description)
        self._manager.register_backend(
            description.id,
            description.type,
            description.name or description.id,
            instance,
            endpoint=description.endpoint,
            weight=description.weight,
            max_concurrency=description.max_concurrency,
        )
        if kept:
            self._known[description.id] = description
        if not description.enabled:
            self._manager.drain(description.id)

    def _require_free(self, backend_id: str) -> None:
        if self._manager.get_backend(backend_id) is not None:
            raise BadRequest(f"there is a backend {backend_id!r} already; remove it first", param="id")

    def _forget(self, backend_id: str) -> bool:
        self._known.pop(backend_id, None)
        return self._manager.unregister_backend(backend_id)

    def _free_id(self, description: BackendDescription) -> str:
        maker = self._factory.makers.get(description.type)
        words = _of_address(description) if maker is None else maker.stem(description)
        stem = re.sub(r"[^a-z0-9.]+", "-", words.lower()).strip("-.")
        taken = {backend.backend_id for backend in self._manager.list_backends()}
        number = 1
        while (name := stem if number == 1 else f"{stem}-{number}") in taken:
            number += 1
        return name


def _of_address(description: BackendDescription) -> str:
    try:
        parts = urlsplit(description.endpoint or "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # The factory says what is wrong with such an address.
        host, port = "", None
    host = "local" if host in ("localhost", "127.0.0.1", "::1") else host
    return "-".join(filter(None, (description.type, host, str(port) if port else "")))
