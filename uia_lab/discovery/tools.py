"""Finds command-line tools on PATH."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from uia_lab.backends.cli.backend import CliBackend
from uia_lab.backends.cli.maker import CliMaker
from uia_lab.backends.cli.programs import found, require_trusted
from uia_lab.backends.cli.tools import TOOLS, Tool, tools_named
from uia_lab.discovery.apis import Found
from uia_lab.discovery.rounds import Rounds
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import InferenceError
from uia_lab.inference_backend_manager import BackendManager

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
SOURCE = "PATH"
_WELL = (BackendStatus.HEALTHY, BackendStatus.DEGRADED)


class ToolDiscovery:
    """Looks at start and again and again; a tool that tells its version is registered.

    Args:
        manager: Where backends are registered.
        maker: Makes them.
        names: Tools that are wanted; all of the table when empty.
        interval: Seconds between two looks.

    Raises:
        BadRequest: A name that is no tool's; the message lists the known ones.
    """

    def __init__(
        self,
        manager: BackendManager,
        maker: CliMaker,
        names: Sequence[str] = (),
        *,
        interval: float = INTERVAL_S,
    ) -> None:
        self._manager = manager
        self._maker = maker
        self._named = bool(names)
        named = {tool.name: tool for name in names for tool in tools_named(name)}
        self._wanted: Mapping[str, Tool] = named or TOOLS
        self._found: dict[str, Found] = {}
        self._mine: dict[str, CliBackend] = {}
        self._rounds = Rounds(self.look, "command-line tools", lambda: interval)

    def __repr__(self) -> str:
        return f"<ToolDiscovery: {', '.join(self._found) or 'nothing'} found>"

    def start(self) -> None:
        """Begins to look in the background."""
        self._rounds.start()

    async def stop(self) -> None:
        """Ends it; what was registered stays."""
        await self._rounds.stop()

    @property
    def wanted(self) -> list[Tool]:
        """The tools that are looked for."""
        return list(self._wanted.values())

    def found(self) -> list[Found]:
        """What is on PATH, or was named and is not; in the order of the table."""
        return [self._found[name] for name in self._wanted if name in self._found]

    async def look(self) -> list[Found]:
        """Looks for every tool now and gives what was found."""
        async with asyncio.TaskGroup() as group:
            for tool in self._wanted.values():
                group.create_task(self._visit(tool), name=f"uia-look-{tool.name}")
        return self.found()

    async def _visit(self, tool: Tool) -> None:
        path = await asyncio.to_thread(found, tool.program)
        if path is None:
            self._withdraw(tool)
            self._found.pop(tool.name, None)
            if self._named:
                self._note(tool, tool.program, "is not on the server's PATH")
            return
        mine = self._mine.get(tool.name)
        if mine is not None:
            self._look_again(tool, mine, path)
            if tool.name in self._mine:
                return
        try:
            await asyncio.to_thread(require_trusted, path)
            version = await self._maker.programs.version(tool, path)
        except (InferenceError, OSError) as error:
            self._note(tool, path, str(error))
            return
        await self._register(tool, path, version)

    def _look_again(self, tool: Tool, mine: CliBackend, path: str) -> None:
        """At one that was registered: it may have been removed, or be elsewhere by now."""
        there = self._manager.get_backend(mine.description.id)
        if there is None or there.instance is not mine:
            self._note(tool, path, "was removed; add it by hand to have it back")
        elif mine.path != path:
            self._withdraw(tool)
        else:
            self._note(tool, path, there.reason, there.backend_id, usable=there.status in _WELL)

    async def _register(self, tool: Tool, path: str, version: str) -> None:
        backend_id = self._free_id(tool)
        backend = self._maker.build(
            BackendDescription(id=backend_id, type="cli", endpoint=path, options={"tool": tool.name})
        )
        # No await from the choice of the id to here: nobody has taken it meanwhile.
        self._manager.register_backend(
            backend_id,
            "cli",
            tool.title,
            backend,
            endpoint=path,
            metadata={"found": SOURCE, "verified": tool.verified},
            max_concurrency=1,
        )
        self._mine[tool.name] = backend
        log.info("found %s at %s (%s)", tool.title, path, version)
        self._note(tool, path, "is looked at", backend_id)
        with suppress(InferenceError):
            # It may be taken out while it is looked at.
            await self._manager.probe(backend_id)
        self._look_again(tool, backend, path)

    def _free_id(self, tool: Tool) -> str:
        number = 1
        while self._manager.get_backend(name := f"{tool.name}-cli" + (f"-{number}" if number > 1 else "")):
            number += 1
        return name

    def _withdraw(self, tool: Tool) -> None:
        mine = self._mine.pop(tool.name, None)
        if mine is None:
            return
        there = self._manager.get_backend(mine.description.id)
        if there is not None and there.instance is mine:
            self._manager.unregister_backend(mine.description.id)

    def _note(
        self, tool: Tool, path: str, reason: str, backend_id: str | None = None, *, usable: bool = False
    ) -> None:
        self._found[tool.name] = Found(path, SOURCE, tool.name, backend_id, usable, reason, "cli")
