"""The process of one call, and all that it starts: bounded, and ended for good."""

import asyncio
import contextlib
import os
import re
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, Process, SubprocessStreamProtocol
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.texts import one_line

if TYPE_CHECKING:
    import psutil

MARK = "UIA_LAB_CALL"
"""The variable by which what a call started is known, wherever it went."""
MAX_OUTPUT = 32 << 20
CHUNK = 1 << 16
GRACE_S = 0.5
KILL_S = 5.0
DRAIN_S = 1.0
KEPT_STDERR = 16 << 10
SHOWN_STDERR = 600
_ROUNDS = 50
_PAUSE_S = 0.02
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


class ToolProcess:
    """One run of a program in a process group of its own. Belongs to one event loop.

    ``await start(...)``, :meth:`read` to the end, and ``await end()`` in any case.

    Args:
        mark: The value of MARK in its environment.
        protocol: Who is told of its exit.
        transport: Its pipes.
    """

    def __init__(
        self, mark: str, protocol: "_Protocol", transport: asyncio.SubprocessTransport, said: bytes | None
    ) -> None:
        self._mark = mark
        self._protocol = protocol
        self._transport = transport
        self._process = Process(transport, protocol, asyncio.get_running_loop())
        self._group = self._process.pid
        self._stderr = bytearray()
        self._size = 0
        self._over = asyncio.create_task(self._follow(), name=f"uia-cli-{self._group}")
        self._pipes = [asyncio.create_task(self._listen(), name=f"uia-cli-{self._group}-stderr")]
        if said is not None:
            self._pipes.append(asyncio.create_task(self._say(said), name=f"uia-cli-{self._group}-stdin"))

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], folder: Path, said: bytes | None = None
    ) -> Self:
        """Starts a program.

        Args:
            command: Program and arguments; no shell sees them.
            environment: All of its environment, with MARK.
            folder: Where it runs.
            said: What it reads from its standard input; that is closed when absent.

        Raises:
            BackendFailed: The system refused.
        """
        spawning = asyncio.ensure_future(cls._spawned(command, environment, folder, said))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # It runs, or will in a moment. In a task: whoever is interrupted twice must not leave it behind.
            ending = asyncio.create_task(_end_once_there(spawning), name="uia-cli-end")
            _endings.add(ending)
            ending.add_done_callback(_endings.discard)
            await asyncio.shield(ending)
            raise

    @classmethod
    async def _spawned(
        cls, command: Sequence[str], environment: Mapping[str, str], folder: Path, said: bytes | None
    ) -> Self:
        loop = asyncio.get_running_loop()
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: _Protocol(CHUNK, loop),
                *command,
                stdin=DEVNULL if said is None else PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise BackendFailed(f"{command[0]} cannot be run: {why}") from error
        return cls(environment[MARK], protocol, transport, said)

    @property
    def pid(self) -> int:
        """Its id, which is that of its group too."""
        return self._group

    @property
    def code(self) -> int | None:
        """Its return code; None while it runs."""
        return self._transport.get_returncode()

    async def read(self) -> bytes:
        """What it printed next; empty at the end, which comes with its exit whoever still has the pipe.

        Raises:
            BackendFailed: It printed too much.
        """
        stdout = self._process.stdout
        assert stdout is not None
        reading = asyncio.ensure_future(stdout.read(CHUNK))
        try:
            await asyncio.wait({reading, self._over}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait({reading}, timeout=DRAIN_S)
            data = reading.result() if reading.done() else b""
        finally:
            await _cancel([reading])
        self._size += len(data)
        if self._size > MAX_OUTPUT:
            raise BackendFailed(f"printed more than {MAX_OUTPUT >> 20} MiB")
        return data

    async def exited(self, seconds: float | None = None) -> int | None:
        """Waits for its exit and gives its return code; None if that did not come in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._protocol.exited.wait()
        return self.code

    def words(self, secrets: Sequence[str] = ()) -> str:
        """The last of what it printed as errors, on one line and without the secrets it was given."""
        text = bytes(self._stderr).decode(errors="replace")
        for secret in filter(None, secrets):
            text = text.replace(secret, "<key>")
        return one_line(_ESCAPES.sub("", text))[-SHOWN_STDERR:]

    async def end(self) -> None:
        """Ends it and all it started: told to by SIGTERM, then killed; nothing of it is left behind."""
        if not self._protocol.exited.is_set():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self._over}, timeout=GRACE_S)
        if not self._protocol.exited.is_set():
            self._signal(signal.SIGKILL)
        await asyncio.wait({self._over}, timeout=KILL_S)
        await _cancel([*self._pipes, self._over])
        self._transport.close()
        # The pipes' transports close in a callback of the loop, one round later.
        await asyncio.sleep(0)

    def _signal(self, number: signal.Signals) -> None:
        # It is not reaped yet, so the number still stands for its group and no other.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)

    async def _follow(self) -> None:
        """Waits for its exit; whatever outlives it is killed."""
        await self._protocol.exited.wait()
        await asyncio.to_thread(sweep, self._mark, self._group)

    async def _say(self, said: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        # One that does not read its input is no error: it may answer all the same.
        with contextlib.suppress(ConnectionError):
            stdin.write(said)
            await stdin.drain()
        stdin.close()

    async def _listen(self) -> None:
        """Keeps the last of stderr; a process whose stderr nobody reads would stand still."""
        stderr = self._process.stderr
        assert stderr is not None
        while data := await stderr.read(CHUNK):
            self._stderr += data
            if len(self._stderr) > KEPT_STDERR:
                # From the beginning of a line on: the half of a key could not be told from a word.
                kept = self._stderr[-KEPT_STDERR:]
                self._stderr = kept[kept.find(b"\n") + 1 :]


class _Protocol(SubprocessStreamProtocol):
    """Knows of the exit at once, also while somebody else holds the pipes open."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


# The loop itself keeps no task alive.
_endings: set[asyncio.Task[None]] = set()


async def _end_once_there(spawning: "asyncio.Future[Any]") -> None:
    with contextlib.suppress(BackendFailed):
        await (await spawning).end()


def sweep(mark: str, group: int) -> None:
    """Kills what is still there of a call whose first process has ended. Blocks.

    What left the group is known by the mark in its environment, as build servers know theirs.

    Args:
        mark: The value of MARK.
        group: The process group.
    """
    import psutil

    for _ in range(_ROUNDS):
        found = [process for process in psutil.process_iter() if _is_of(process, mark, group)]
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # Looked for again: one may have started another in between. They are not ours to wait for.
        time.sleep(_PAUSE_S)


def _is_of(process: "psutil.Process", mark: str, group: int) -> bool:
    import psutil

    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return os.getpgid(process.pid) == group or process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


async def _cancel(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
