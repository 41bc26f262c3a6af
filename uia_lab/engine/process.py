"""The server's side of a worker process."""

import asyncio
import contextlib
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeAlias

from uia_lab.domain.errors import BackendFailed, BackendTimeout, BadRequest, InferenceError
from uia_lab.engine import frames
from uia_lab.engine.child import ending, environment
from uia_lab.engine.frames import Answer, Cancel, Done, Failed, Load, Loaded, Piece, Ping, Pong, Stop, Submit

QUEUE_FRAMES = 4096
STDERR_LINES = 40
# A worker answers between two tokens; only one that is frozen is silent for so long.
BEAT_S = 10.0
SILENT_S = 30.0
_SPAWN_S = 30.0
_SEND_S = 30.0
_GRACE_S = 2.0
_KILL_S = 5.0

_Control: TypeAlias = Loaded | Pong | Failed


class WorkerProcess:
    """A worker process and the requests it works on. Belongs to one event loop.

    ``await spawn()`` and ``await load(...)`` before the first :meth:`submit`, ``await stop()`` at the end.
    A worker that died stays dead: make a new one.

    Args:
        name: What messages call it: the model's name.
        on_death: Called once if it ends without having been asked to.
        beat_s: Seconds between two questions whether it still lives, from the end of its load on.
        silent_s: Seconds it may take to answer one of them before it is killed.
    """

    def __init__(
        self,
        name: str,
        on_death: Callable[[], None] | None = None,
        *,
        beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
    ) -> None:
        self.name = name
        self._on_death = on_death
        self._beat_s = beat_s
        self._silent_s = silent_s
        self._silent = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._answers: dict[str, asyncio.Queue[Answer | InferenceError]] = {}
        self._control: asyncio.Queue[_Control | InferenceError] = asyncio.Queue(16)
        self._asking = asyncio.Lock()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._stopping = False
        self._dead = asyncio.Event()
        self._why = ""

    @property
    def pid(self) -> int | None:
        """Process id, once spawned."""
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether it is running and can be talked to."""
        return self._process is not None and not self._dead.is_set() and not self._stopping

    @property
    def why(self) -> str:
        """Why it is dead: exit status or signal and its last words; empty while it lives."""
        return self._why

    @property
    def running(self) -> int:
        """Requests it works on."""
        return len(self._answers)

    async def spawn(self) -> None:
        """Starts the process.

        Raises:
            BackendFailed: The system refused.
        """
        ours, theirs = socket.socketpair()
        try:
            async with asyncio.timeout(_SPAWN_S):
                self._process = await asyncio.create_subprocess_exec(
                    # -P: what lies in the notebook's folder must not be imported instead of a library.
                    *(sys.executable, "-P", "-m", "uia_lab.engine.worker", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    # Its own session: Ctrl-C of a terminal goes to the server alone.
                    start_new_session=True,
                    env=environment(),
                )
                theirs.close()
                reader, self._writer = await asyncio.open_connection(sock=ours)
        except (OSError, TimeoutError) as error:
            ours.close()
            raise BackendFailed(f"could not start a worker for {self.name}: {error}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._tasks = [
            asyncio.create_task(self._read(reader), name=f"worker {self.name}"),
            asyncio.create_task(self._listen(), name=f"worker {self.name} stderr"),
        ]

    async def load(self, message: Load, timeout_s: float) -> float:
        """Has the worker load a model.

        Args:
            message: What to load.
            timeout_s: Seconds it may take.

        Returns:
            Seconds the worker took.

        Raises:
            BackendFailed: It cannot be loaded, or the worker died; the message says why.
            BackendTimeout: It took too long.
        """
        answer = await self._ask(message, timeout_s)
        if not isinstance(answer, Loaded):
            raise BackendFailed(f"{self.name} cannot be loaded: {getattr(answer, 'message', answer)}")
        self._tasks.append(asyncio.create_task(self._beat(), name=f"worker {self.name} heartbeat"))
        return answer.seconds

    async def ping(self, timeout_s: float = 5.0) -> dict[str, float]:
        """Figures of the worker.

        Raises:
            BackendFailed: It died.
            BackendTimeout: It did not answer.
        """
        answer = await self._ask(Ping(), timeout_s)
        return answer.stats if isinstance(answer, Pong) else {}

    async def submit(
        self,
        rid: str,
        *,
        task: str,
        inputs: Any = None,
        messages: list[dict[str, Any]] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> AsyncGenerator[Answer, None]:
        """Has a request worked on; closing the iterator cancels it.

        Args:
            rid: Id of the request, unique among the running ones.
            task: Its canonical task.
            inputs: Its inputs, if it has no messages.
            messages: Its chat messages, if it has no inputs.
            parameters: Its parameters.

        Yields:
            Pieces, then one Done or Failed.

        Raises:
            BadRequest: The request holds something that cannot be sent.
            BackendFailed: The worker died, or frames came faster than they were taken for too long.
        """
        if rid in self._answers:
            raise BadRequest(f"a request with the id {rid!r} is running already")
        self._check()
        queue: asyncio.Queue[Answer | InferenceError] = asyncio.Queue(QUEUE_FRAMES)
        self._answers[rid] = queue
        finished = False
        try:
            try:
                await self._send(Submit(rid, task, self.name, inputs, messages, parameters or {}))
            except frames.FrameError as error:
                finished = True
                raise BadRequest(f"the request {error}", param="inputs") from error
            while not finished:
                answer = await queue.get()
                if isinstance(answer, InferenceError):
                    raise answer
                finished = isinstance(answer, Done | Failed)
                yield answer
        finally:
            self._answers.pop(rid, None)
            if not finished and self.alive and self._writer is not None:
                # No await here: the iterator may be closing because its task was cancelled.
                self._writer.write(frames.encode(Cancel(rid)))

    async def stop(self) -> None:
        """Ends the process, kindly for a moment and then with a kill, and leaves nothing behind."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        try:
            if process.returncode is None and self._writer is not None:
                self._writer.write(frames.encode(Stop()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GRACE_S):
                        await self._dead.wait()
        except asyncio.CancelledError:
            # The loop is closing, and nobody will come after us to tidy up.
            await self._reap(process)
            raise
        await self._reap(process)

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_S):
                await process.wait()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        # The transport of the subprocess closes itself in a callback of the loop, one round after the exit.
        await asyncio.sleep(0)

    def kill(self) -> None:
        """Ends the process at once, without waiting; also where there is no loop any more to wait in."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):
                self._writer.close()

    async def _ask(self, message: Load | Ping, timeout_s: float) -> _Control:
        """Sends a message that is about no request and gives its answer."""
        try:
            async with asyncio.timeout(timeout_s), self._asking:
                self._check()
                # An answer may be left from a question that nobody waited for any more.
                while not self._control.empty():
                    self._control.get_nowait()
                await self._send(message)
                answer = await self._control.get()
        except TimeoutError:
            what = "load" if isinstance(message, Load) else "answer"
            raise BackendTimeout(f"the worker of {self.name} did not {what} within {timeout_s:g} s") from None
        if isinstance(answer, InferenceError):
            raise answer
        return answer

    async def _send(self, message: Load | Ping | Submit) -> None:
        assert self._writer is not None
        self._writer.write(frames.encode(message))
        try:
            async with asyncio.timeout(_SEND_S):
                await self._writer.drain()
        except TimeoutError:
            raise BackendTimeout(f"the worker of {self.name} has read nothing for {_SEND_S:g} s") from None
        except OSError as error:
            raise BackendFailed(self._why or f"the worker of {self.name} died: {error}") from error

    def _check(self) -> None:
        if self._stopping or self._process is None:
            raise BackendFailed(f"the worker of {self.name} is not running")
        if self._dead.is_set():
            raise BackendFailed(self._why)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hands out frames until the worker's end closes; then every running request fails."""
        broke = ""
        try:
            while True:
                frame = await frames.read(reader)
                if isinstance(frame, Piece | Done) or (isinstance(frame, Failed) and frame.rid is not None):
                    self._hand(frame)
                else:
                    with contextlib.suppress(asyncio.QueueFull):
                        self._control.put_nowait(frame)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except frames.FrameError as error:
            broke = str(error)
        await self._died(broke)

    def _hand(self, frame: Answer) -> None:
        queue = self._answers.get(frame.rid or "")
        if queue is None:
            return
        if not queue.full():
            queue.put_nowait(frame)
            return
        # The other requests share the socket, so a stalled one must not stop the reading: it fails instead.
        message = f"the answer was not taken: {QUEUE_FRAMES} pieces are waiting"
        self._fail(frame.rid or "", BackendFailed(message))
        if self._writer is not None:
            self._writer.write(frames.encode(Cancel(frame.rid or "")))

    def _fail(self, rid: str, error: InferenceError) -> None:
        """Ends a running request with an error, at the cost of its oldest piece where the queue is full."""
        queue = self._answers.pop(rid)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(error)

    async def _died(self, broke: str) -> None:
        """Says why to everyone who waits."""
        process = self._process
        assert process is not None
        if broke:
            self.kill()
        try:
            async with asyncio.timeout(_KILL_S):
                # The socket closes just before the process is gone, and its last words come after that.
                status = await process.wait()
                await asyncio.wait(self._tasks[1:2], timeout=1.0)
        except TimeoutError:
            process.kill()
            status = await process.wait()
        if self._stopping and not broke:
            self._why = f"the worker of {self.name} was stopped"
        else:
            silent = f"killed: it did not answer for {self._silent_s:g} s" if self._silent else ""
            self._why = f"the worker of {self.name} died ({broke or silent or ending(status)})"
            if self._stderr:
                self._why += ": " + " | ".join(list(self._stderr)[-5:])
        self._dead.set()
        for rid in list(self._answers):
            self._fail(rid, BackendFailed(self._why))
        with contextlib.suppress(asyncio.QueueFull):
            self._control.put_nowait(BackendFailed(self._why))
        if self._writer is not None:
            self._writer.close()
        if self._on_death is not None and (broke or not self._stopping):
            self._on_death()

    async def _beat(self) -> None:
        """Kills a worker that has stopped answering: its requests fail now, and a new one can be loaded."""
        assert self._process is not None
        while not self._dead.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat_s):
                    await self._dead.wait()
                    return
            try:
                await self.ping(self._silent_s)
            except BackendTimeout:
                self._silent = True
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                return
            except BackendFailed:
                return

    async def _listen(self) -> None:
        """Keeps the last lines of stderr; a worker whose stderr nobody reads would stand still."""
        assert self._process is not None
        assert self._process.stderr is not None
        rest = b""
        while data := await self._process.stderr.read(8192):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-2048:]
            self._stderr.extend(text for line in lines if (text := _text(line)))
        if text := _text(rest):
            self._stderr.append(text)


def _text(line: bytes) -> str:
    return line[:500].decode(errors="replace").strip()
