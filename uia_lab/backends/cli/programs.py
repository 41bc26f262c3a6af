"""Programs on this machine: where one is, whose it is, and what it tells for nothing."""

import asyncio
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from uia_lab.backends.cli.process import MARK, ToolProcess
from uia_lab.backends.cli.surroundings import environment_of
from uia_lab.backends.cli.tools import Tool
from uia_lab.domain.errors import BackendFailed, BackendTimeout, BadRequest, NotAllowed
from uia_lab.domain.texts import one_line
from uia_lab.engine.child import ending

ASK_S = 20.0
AT_ONCE = 2
LISTING_S = 600.0
_VERSION = re.compile(r"\d+(?:\.\d+)+\S*")


def found(program: str) -> str | None:
    """The absolute path of a program by its name or path, or None.

    A relative entry of PATH is passed over: what it leads to depends on where the server was started.
    """
    path = shutil.which(Path(program).expanduser())
    return str(path) if path is not None and Path(path).is_absolute() else None


def located(program: str) -> str:
    """As :func:`found`.

    Raises:
        BadRequest: There is none.
    """
    path = found(program)
    if path is None:
        raise BadRequest(f"the program {program!r} is not on the server's PATH", param="options.command")
    return path


def require_trusted(path: str) -> None:
    """Passes where nobody but this user and the system's administrator can have put the program there.

    Raises:
        NotAllowed: Somebody else can have; the message says why.
    """
    named, real = Path(path).absolute(), Path(path).resolve()
    # Whoever may change a link, or the folder it is in, may have it lead elsewhere after this.
    for place in dict.fromkeys((named, named.parent, real, real.parent)):
        status = place.lstat() if place == named else place.stat()
        if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
            raise NotAllowed(f"{place} belongs to another user of this machine; add it by hand to use it")
        link = stat.S_ISLNK(status.st_mode)
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX and not link:
            raise NotAllowed(f"anybody can write to {place}; add it by hand to use it")


class Programs:
    """Asks programs for their version and models, and remembers the answers while the file stays the same.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._asked: dict[tuple[str, ...], tuple[object, float, asyncio.Task[str]]] = {}

    async def version(self, tool: Tool, path: str) -> str:
        """The tool's version, in its words; of one that has no way to tell it, only that it is there.

        Raises:
            BackendFailed: It is gone, or fails.
        """
        if not tool.version:
            await _look_at(path)
            return "is there"
        said = await self._ask(tool, (path, *tool.version), float("inf"))
        for line in said.splitlines():
            if _VERSION.search(line):
                return one_line(line)[:80]
        return one_line(said)[:80] or "tells no version"

    async def models(self, tool: Tool, path: str) -> list[str]:
        """The models that a tool with a listing lists.

        Raises:
            BackendFailed: It cannot be run, or says that it failed.
        """
        pattern = re.compile(tool.listed)
        lines = (await self._ask(tool, (path, *tool.listing), LISTING_S)).splitlines()
        return list(dict.fromkeys(match[1] for line in lines if (match := pattern.match(line.strip()))))

    async def close(self) -> None:
        """Ends what is still being asked."""
        tasks = [task for _, _, task in self._asked.values()]
        self._asked.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, tool: Tool, command: tuple[str, ...], seconds: float) -> str:
        """What a program prints; whoever asks the same meanwhile gets the same answer."""
        status = await _look_at(command[0])
        print_of_file = (status.st_mtime_ns, status.st_size, status.st_ino)
        known, at, task = self._asked.get(command, (None, 0.0, None))
        old = task is None or known != print_of_file or self._clock() - at > seconds
        if old or (task is not None and task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(self._run(tool, command), name=f"uia-ask-{tool.name}")
            # Its error is for whoever waits for it; nobody may be waiting.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._asked[command] = (print_of_file, self._clock(), task)
        assert task is not None
        return await asyncio.shield(task)

    async def _run(self, tool: Tool, command: tuple[str, ...]) -> str:
        async with self._gate:
            environment = environment_of(tool, {}) | {MARK: uuid.uuid4().hex}
            try:
                async with asyncio.timeout(ASK_S):
                    return await _said(command, environment)
            except TimeoutError:
                raise BackendTimeout(f"{command[0]} said nothing within {ASK_S:g} s") from None


async def _look_at(path: str) -> os.stat_result:
    try:
        return await asyncio.to_thread(os.stat, path)
    except OSError as error:
        raise BackendFailed(f"{path} is gone: {error.strerror}") from None


async def _said(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    folder = tempfile.mkdtemp(prefix="uia-cli-")
    try:
        process = await ToolProcess.start(command, environment, Path(folder))
        try:
            said = bytearray()
            while data := await process.read():
                said += data
            code = await process.exited()
        finally:
            await asyncio.shield(asyncio.ensure_future(process.end()))
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if code != 0:
        how = ending(code if code is not None else -1)
        raise BackendFailed(f"{' '.join(command)} failed ({how}): {process.words()}")
    return said.decode(errors="replace")
