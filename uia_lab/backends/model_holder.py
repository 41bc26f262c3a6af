"""A local model's worker: loaded when it is needed, watched, restarted, put to rest."""

import asyncio
import contextlib
import importlib.util
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from uia_lab.domain.errors import BackendFailed, InferenceError, InsufficientMemory, NoBackendAvailable
from uia_lab.engine.catalogue import Progress
from uia_lab.engine.frames import Load
from uia_lab.engine.process import WorkerProcess
from uia_lab.engine.sources import CACHE_MOST_BYTES, ModelSource

BACK_OFF_S = 0.5
BACK_OFF_MOST_S = 30.0

_PACKAGES = {"llamacpp": ("xllamacpp",), "transformers": ("torch", "transformers")}
_EXTRAS = {"llamacpp": "llamacpp", "transformers": "engine"}

Admit = Callable[["ModelHolder"], Awaitable[None]]
"""Called before a load; it makes room, or raises what keeps the model out."""


class ModelHolder:
    """Holds one model in memory, or not. Belongs to one event loop from :meth:`settle_in` on.

    Args:
        source: The model.
        concurrency: Requests it works on at once.
        keep_alive_s: Seconds without a request after which it gives its memory back; 0 or less: never.
        load_timeout_s: Seconds loading may take, the download not counted.
        device: Where it computes, as torch names it.
        admit: Decides whether it may be loaded.

    Attributes:
        active: Requests that need it now.
        used_at: Loop time at which a request last ended.
        load_seconds: What the last load took inside the worker.
        stage: What is being done of a load: ``fetching``, ``waiting for room``, ``loading``; empty otherwise.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        concurrency: int,
        keep_alive_s: float,
        load_timeout_s: float,
        device: str = "cpu",
        admit: Admit | None = None,
    ) -> None:
        self.source = source
        self.concurrency = concurrency
        self.keep_alive_s = keep_alive_s
        self.load_timeout_s = load_timeout_s
        self.device = device
        self.active = 0
        self.used_at = 0.0
        self.load_seconds: float | None = None
        self.stage = ""
        self.needs_bytes = 0
        self.trouble = ""
        self._admit = admit
        self._worker: WorkerProcess | None = None
        self._loading: asyncio.Task[WorkerProcess] | None = None
        self._quit = threading.Event()
        self._listeners: list[Progress] = []
        self._timer: asyncio.TimerHandle | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._retry_at = 0.0

    @property
    def worker(self) -> WorkerProcess | None:
        """The worker that has the model, if one has."""
        return self._worker

    @property
    def loading(self) -> bool:
        """Whether it is being loaded."""
        return self._loading is not None

    @property
    def loaded(self) -> bool:
        """Whether a worker has the model in memory."""
        return self._worker is not None and self._worker.alive

    @property
    def wait_s(self) -> float:
        """Seconds until a load may be tried again."""
        return self._retry_at - asyncio.get_running_loop().time()

    def missing(self) -> str:
        """What to install, or nothing. Looks for the packages without importing them."""
        engine = self.source.engine
        absent = [name for name in _PACKAGES[engine] if importlib.util.find_spec(name) is None]
        if not absent:
            return ""
        return f"{' and '.join(absent)} not installed: pip install 'uia-lab[{_EXTRAS[engine]}]'"

    def settle_in(self) -> None:
        """Lets go of what belonged to a loop that has ended: its worker can be reached no more."""
        here = asyncio.get_running_loop()
        old, self._home = self._home, here
        if old is None or old is here:
            return
        if self._worker is not None:
            self._worker.kill()
        self._worker = self._loading = self._timer = None
        self._chores.clear()
        self.active = 0

    def enter(self) -> None:
        """A request needs the model from now on."""
        self.active += 1
        self._stop_timer()

    def leave(self) -> None:
        """A request needs it no more."""
        self.active -= 1
        self.used_at = asyncio.get_running_loop().time()
        self.rest()

    def rest(self) -> None:
        """Starts the idle time anew, if nobody needs the model now."""
        self._stop_timer()
        if self.keep_alive_s > 0 and self.active == 0 and self._worker is not None:
            self._timer = asyncio.get_running_loop().call_later(
                self.keep_alive_s, lambda: self._chore(self._unload_if_idle)
            )

    def proved(self) -> None:
        """An answer came to its proper end: earlier trouble is over."""
        self._failures, self.trouble = 0, ""

    async def ready(self, progress: Progress | None = None) -> WorkerProcess:
        """The worker, loaded; everyone who asks meanwhile waits for the same load.

        Args:
            progress: Called on the event loop with bytes so far and bytes in all of a download.

        Raises:
            InferenceError: It cannot be fetched, admitted or loaded.
        """
        if self._worker is not None:
            return self._worker
        if self._loading is None:
            if missing := self.missing():
                raise BackendFailed(f"{self.source.name}: {missing}")
            if (wait := self.wait_s) > 0:
                raise BackendFailed(f"{self.trouble}; next try in {wait:.1f} s", retry_after=wait)
        loading = self._loading or self.begin()
        if progress is not None:
            self._listeners.append(progress)
        try:
            # Shielded: whoever gives up waiting must not take the load away from the others.
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if loading.cancelled() and not (task is not None and task.cancelling()):
                raise BackendFailed(f"{self.source.name} was unloaded while it loaded") from None
            raise
        finally:
            if progress is not None:
                self._listeners.remove(progress)

    def begin(self) -> asyncio.Task[WorkerProcess]:
        """Starts to load."""
        self._quit = threading.Event()
        self._loading = asyncio.create_task(self._load(self._quit), name=f"load {self.source.name}")
        self._loading.add_done_callback(self._loaded)
        return self._loading

    async def unload(self) -> None:
        """Gives the memory back; running answers end with an error, the next request loads again."""
        self._stop_timer()
        loading, self._loading = self._loading, None
        worker, self._worker = self._worker, None
        if loading is not None:
            self._quit.set()
            loading.cancel()
            await asyncio.wait([loading])
            self.stage = ""
        if worker is not None:
            await worker.stop()

    async def close(self) -> None:
        """Unloads and waits for everything that goes on."""
        await self.unload()
        while self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)

    async def _load(self, quit_: threading.Event) -> WorkerProcess:
        source = self.source
        self.stage = "fetching"
        path = await asyncio.to_thread(source.fetch, self._reporter(quit_))
        self.needs_bytes = (await asyncio.to_thread(source.estimate, self.concurrency)).total_bytes
        if self._admit is not None:
            self.stage = "waiting for room"
            await self._admit(self)
        self.stage = "loading"
        worker = WorkerProcess(source.name, lambda: self._died(worker))
        order = Load(
            source.engine,
            str(path),
            source.name,
            self.concurrency,
            source.context_length,
            source.task,
            self.device,
            source.dtype,
            CACHE_MOST_BYTES,
        )
        try:
            await worker.spawn()
            self.load_seconds = await worker.load(order, self.load_timeout_s)
        except BaseException:
            await worker.stop()
            raise
        self._worker = worker
        self.used_at = asyncio.get_running_loop().time()
        return worker

    def _loaded(self, task: asyncio.Task[WorkerProcess]) -> None:
        if self._loading is task:
            self._loading = None
            self.stage = ""
        if task.cancelled() or (error := task.exception()) is None:
            return
        # No room is not the model's fault: there may be some a moment later.
        if not isinstance(error, (InsufficientMemory, NoBackendAvailable)):
            self._failed(error.message if isinstance(error, InferenceError) else repr(error))

    def _failed(self, why: str) -> None:
        """Notes a crash or a load that failed, and backs off."""
        self.trouble = why
        pause = min(BACK_OFF_S * 2.0 ** min(self._failures, 16), BACK_OFF_MOST_S)
        self._failures += 1
        self._retry_at = asyncio.get_running_loop().time() + pause

    def _died(self, worker: WorkerProcess) -> None:
        """The worker ended by itself."""
        if worker is self._worker:
            self._worker = None
            self._failed(worker.why)
            self._chore(worker.stop)

    async def _unload_if_idle(self) -> None:
        if not self.active:
            await self.unload()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _chore(self, work: Callable[[], Any]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work(), name=f"{self.source.name} upkeep")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _reporter(self, quit_: threading.Event) -> Progress:
        """A progress callback for the fetching thread; it also ends the fetch when nobody wants it."""
        loop = asyncio.get_running_loop()

        def tell(done: int, total: int) -> None:
            for listener in list(self._listeners):
                listener(done, total)

        def report(done: int, total: int) -> None:
            if quit_.is_set():
                raise BackendFailed(f"fetching {self.source.name} was given up")
            with contextlib.suppress(RuntimeError):
                # RuntimeError: the loop has closed, and with it whoever listened.
                loop.call_soon_threadsafe(tell, done, total)

        return report
