"""Runs a batch: some prompts at a time, each answer kept as it comes."""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from uia_lab.domain.errors import (
    InferenceError,
    ModelNotFound,
    NotAllowed,
    QueueFull,
    RateLimited,
    Unauthenticated,
)
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.notebook.batch import Batch, BatchItem
from uia_lab.notebook.batch_file import BatchFile
from uia_lab.notebook.batch_progress import BatchProgress
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.generations import Generations
from uia_lab.notebook.transport import Transport

# The manager tries other backends by itself; what is left to us is to wait while the house is full.
TRIES = 10
LONGEST_PAUSE_S = 30.0
PAGE = 1000
LOOKED_THROUGH = 20_000
# What fails for one of these would for the next as well.
HOPELESS = (Unauthenticated, NotAllowed, ModelNotFound)


class BatchRun:
    """The work on one batch; it belongs to the Lab's loop.

    Args:
        batch: What to fill.
        requests: The request of each prompt.
        keys: Digest of each request.
        generations: Who asks.
        concurrency: Requests at once.
        file: Where answers are kept; nowhere when absent.
        progress: Who shows how far it is.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        batch: Batch,
        requests: Sequence[InferenceRequest],
        keys: Sequence[str],
        generations: Generations,
        concurrency: int,
        file: BatchFile | None,
        progress: BatchProgress | None,
        sleep: Callable[[float], "asyncio.Future[None]"] | None = None,
    ) -> None:
        self._batch = batch
        self._requests = requests
        self._keys = keys
        self._generations = generations
        self._concurrency = concurrency
        self._file = file
        self._progress = progress
        self._sleep = sleep or asyncio.sleep
        self._left: deque[BatchItem] = deque(item for item in batch if item.state == "waiting")
        self._active: set[Generation] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Asks for all that is not answered yet.

        Raises:
            InferenceError: One that every prompt would end with.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(self._left))):
                    group.create_task(self._work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for item in self._batch:
                if item.state in ("waiting", "running"):
                    item.state = "stopped"
            if self._progress is not None:
                self._progress.ended(self._batch)

    async def stop(self) -> None:
        """Ends it; what is answered already stays."""
        self._stopped.set()
        while self._waiting:
            self._one_more()
        for generation in list(self._active):
            generation.stop()

    async def _work(self) -> None:
        while self._left and not self._stopped.is_set():
            item = self._left.popleft()
            item.state = "running"
            await self._ask(item)
            if self._progress is not None:
                self._progress.changed(self._batch)

    async def _ask(self, item: BatchItem) -> None:
        began = time.perf_counter()
        tries = 0
        while True:
            try:
                generation = self._generations.begin(
                    self._requests[item.index], item.prompt, show=False, wait=True
                ).generation
            except RuntimeError:
                # The Lab was closed, which ends all of it.
                self._stopped.set()
                return
            self._active.add(generation)
            try:
                await generation
            finally:
                self._active.discard(generation)
                generation.stop()
            if not isinstance(generation.error, (QueueFull, RateLimited)) or self._stopped.is_set():
                self._one_more()
                break
            if self._active:
                # More at once than this key or house lets through: its turn comes when another has ended.
                await self._another_ends()
            else:
                tries += 1
                if tries == TRIES:
                    break
                await self._pause(generation.error)
            if self._stopped.is_set():
                break
        item.seconds = time.perf_counter() - began
        await self._end(item, generation)

    def _one_more(self) -> None:
        """Lets one of those go on that wait for another's end."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def _another_ends(self) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(ended)
        await asyncio.wait({ended}, timeout=LONGEST_PAUSE_S)
        ended.cancel()

    async def _pause(self, error: InferenceError | None) -> None:
        seconds = min(LONGEST_PAUSE_S, (error.retry_after if error else None) or 1.0)
        pause = asyncio.ensure_future(self._sleep(seconds))
        stop = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({pause, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            stop.cancel()

    async def _end(self, item: BatchItem, generation: Generation) -> None:
        item.backend, item.usage = generation.backend, generation.usage
        item.finish_reason, item.error = generation.finish_reason, generation.error
        item.state = generation.state
        if item.state == "done":
            item.text = generation.text
            if self._file is not None:
                await asyncio.to_thread(self._file.add, kept(self._keys[item.index], item))
        elif isinstance(item.error, HOPELESS):
            self._stopped.set()
            raise item.error.with_traceback(None)


def kept(key: str, item: BatchItem) -> dict[str, object]:
    """The line of a file for an answer."""
    return {
        "key": key,
        "text": item.text,
        "backend": item.backend,
        "model": item.model,
        "finish_reason": item.finish_reason,
        "usage": None if item.usage is None else msgspec.to_builtins(item.usage),
        "at": time.time(),
    }


async def from_file(items: Sequence[BatchItem], keys: Sequence[str], file: BatchFile) -> None:
    """Fills in what a file has answers to."""
    found = await asyncio.to_thread(file.read, keys)
    for item in items:
        line = found.get(keys[item.index])
        if line is None:
            continue
        item.state, item.kept, item.text = "done", "file", line["text"]
        item.backend, item.finish_reason = line.get("backend"), line.get("finish_reason")
        if isinstance(line.get("usage"), dict):
            item.usage = msgspec.convert(line["usage"], Usage)


async def from_log(
    items: Sequence[BatchItem],
    requests: Sequence[InferenceRequest],
    transport: Transport,
    since: float,
) -> None:
    """Fills in what the request log has answers to, where the service keeps prompts and answers.

    Args:
        items: The prompts; those answered already are left as they are.
        requests: Their requests.
        transport: Who serves.
        since: Only answers to what began then or later, in seconds since the epoch.
    """
    wanted: dict[str, deque[BatchItem]] = {}
    for item in items:
        if item.state == "waiting":
            raw = msgspec.json.encode(list(requests[item.index].messages or ()), enc_hook=str)
            wanted.setdefault(hashlib.sha256(raw).hexdigest(), deque()).append(item)
    until: float | None = None
    seen: set[str] = set()
    while wanted and len(seen) < LOOKED_THROUGH:
        page = (await transport.requests(PAGE, since=since, until=until, outcome="ok"))["requests"]
        fresh = [record for record in page if record["id"] not in seen]
        seen.update(record["id"] for record in fresh)
        for record in fresh:
            waiting = wanted.get(record["input_sha256"])
            if not waiting or waiting[0].model not in (None, record["model"]):
                continue
            text = (await transport.request(record["id"])).get("result")
            if not isinstance(text, str):
                # This service keeps no answers.
                return
            item = waiting.popleft()
            item.state, item.kept, item.text, item.backend = "done", "log", text, record["backend_id"]
            if not waiting:
                del wanted[record["input_sha256"]]
        if len(page) < PAGE or not fresh:
            return
        until = min(record["began_at"] for record in page)
