"""A model on this machine, in a worker process of its own."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np

from uia_lab.backends.local_parameters import for_worker, refuse_unsupported
from uia_lab.backends.model_holder import Admit, ModelHolder
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
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.engine.catalogue import Progress
from uia_lab.engine.frames import Failed, Piece
from uia_lab.engine.sources import ModelSource

_ERRORS = {error.code: error for error in (BadRequest, ContextTooLong, QueueFull, Unsupported)}
_FEATURES = {
    TEXT_GENERATION: {"seed", "logprobs", "stop", "echo", "n"},
    TEXT_EMBEDDING: {"dimensions"},
}


class LocalBackend:
    """Serves one model. Nothing is loaded until the first request or :meth:`load`.

    Belongs to one event loop from :meth:`start` on.

    Args:
        source: The model.
        concurrency: Requests it works on at once; as many as suit its engine when absent.
        keep_alive_s: Seconds without a request after which it gives its memory back; 0 or less: never.
        load_timeout_s: Seconds loading may take, the download not counted.
        device: Where it computes, as torch names it.
        admit: Decides whether it may be loaded.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        concurrency: int | None = None,
        keep_alive_s: float = 1800.0,
        load_timeout_s: float = 300.0,
        device: str = "cpu",
        admit: Admit | None = None,
    ) -> None:
        self.source = source
        self.concurrency = concurrency or source.concurrency
        self.holder = ModelHolder(
            source,
            concurrency=self.concurrency,
            keep_alive_s=keep_alive_s,
            load_timeout_s=load_timeout_s,
            device=device,
            admit=admit,
        )
        self._rids = itertools.count(1)

    @property
    def capabilities(self) -> BackendCapabilities:
        """What the model can do here."""
        source = self.source
        generates = source.task == TEXT_GENERATION
        return BackendCapabilities(
            supported_tasks={source.task},
            supported_models={source.name},
            max_batch_size=self.concurrency if generates else 2048,
            supports_streaming=generates,
            supports_batching=True,
            hardware_types={self.holder.device.partition(":")[0]},
            protocols={"local"},
            features=_FEATURES.get(source.task, set()),
            context_length=source.context_length,
            external=False,
            model_digest={} if source.digest is None else {source.name: source.digest},
        )

    @property
    def loaded(self) -> bool:
        """Whether a worker has the model in memory."""
        return self.holder.loaded

    @property
    def models_loaded(self) -> int:
        """How many models it has in memory."""
        return int(self.loaded)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self.holder.worker.pid if self.holder.worker is not None else None

    async def start(self) -> None:
        """Nothing to get ready: the model loads when it is first needed."""
        self.holder.settle_in()

    async def stop(self) -> None:
        """Ends the worker; running answers end with an error."""
        self.holder.settle_in()
        await self.holder.close()

    async def load(self, progress: Progress | None = None) -> None:
        """Gets the model into memory, fetching it first where it is not on this machine.

        Args:
            progress: Called on the event loop with bytes so far and bytes in all of a download.

        Raises:
            BackendFailed: It cannot be fetched or loaded; the message says why and what to do.
            BackendTimeout: Loading took too long.
            InsufficientMemory: There is no room; the message has the numbers.
        """
        await self.holder.ready(progress)
        self.holder.rest()

    async def unload(self) -> None:
        """Gives the memory back; running answers end with an error, the next request loads again."""
        await self.holder.unload()

    async def probe(self) -> Probe:
        """Looks how the model is; loads nothing, save after a crash, once its back-off is over."""
        holder, models = self.holder, frozenset({self.source.name})
        if missing := holder.missing():
            return Probe(BackendStatus.OFFLINE, missing, models)
        if holder.worker is not None:
            try:
                await holder.worker.ping()
            except InferenceError as error:
                return Probe(BackendStatus.UNHEALTHY, error.message, models)
            return Probe(BackendStatus.HEALTHY, f"loaded, pid {self.pid}", models, load=holder.active)
        if not await asyncio.to_thread(self.source.is_here):
            size = f"{self.source.size / 1e6:.0f} MB"
            if holder.loading:
                return Probe(BackendStatus.INITIALIZING, f"is being fetched, {size}", models)
            reason = f"not on this machine: load it, or the first request fetches {size}"
            return Probe(BackendStatus.UNKNOWN, f"{reason}. {holder.trouble}".rstrip(" ."), models)
        if holder.trouble:
            if not holder.loading and holder.wait_s <= 0:
                holder.begin()
            what = "restarting" if holder.loading else f"next try in {holder.wait_s:.1f} s"
            return Probe(BackendStatus.UNHEALTHY, f"{what}: {holder.trouble}", models)
        if not holder.loading:
            return Probe(BackendStatus.HEALTHY, "on disk, loads at the first request", models)
        reason = "waiting for room" if holder.stage == "waiting for room" else "loading"
        return Probe(BackendStatus.HEALTHY, reason, models)

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The answer's events.

        Raises:
            BadRequest: A value that is not what its name stands for.
            Unsupported: A parameter that this model cannot follow.
            ContextTooLong: The prompt does not fit.
            InsufficientMemory: There is no room to load the model.
            BackendFailed: The model could not be loaded, or its worker died.
        """
        refuse_unsupported(request, self.source)
        inputs, parameters = for_worker(request)
        self.holder.enter()
        try:
            worker = await self.holder.ready()
            yield Started("")
            messages = None if request.messages is None else [dict(message) for message in request.messages]
            answers = worker.submit(
                str(next(self._rids)),
                task=request.task,
                inputs=inputs,
                messages=messages,
                parameters=parameters,
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
                        if (whole := _whole(answer)) is not None:
                            (result,) = whole
                            yield Chunk(index, Result(result))
                        else:
                            if answer.choice == 0:
                                text.append(answer.text or "")
                            yield _chunk(index, answer)
                        index += 1
                        continue
                    self.holder.proved()
                    reasons = tuple(answer.finish_reasons)
                    yield Finished(
                        "".join(text) if result is None else result,
                        Usage(answer.input_tokens, answer.output_tokens),
                        reasons[0],
                        finish_reasons=reasons if len(reasons) > 1 else (),
                    )
        finally:
            self.holder.leave()


def _whole(piece: Piece) -> tuple[Any] | None:
    """The result of a task that does not stream text, in a tuple; None for a piece of text."""
    if piece.result is not None:
        return (piece.result["value"],)
    if piece.value is not None:
        return (np.frombuffer(piece.value, "<f4").reshape(-1, piece.width).tolist(),)
    return None


def _chunk(index: int, piece: Piece) -> Chunk:
    logprobs = {"content": piece.logprobs} if piece.logprobs else None
    return Chunk(index, Text(piece.text or ""), piece.choice, logprobs)
