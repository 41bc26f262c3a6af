"""The answer of one request as an async iterator that belongs to whoever asked."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from types import TracebackType
from typing import Self

from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Event, Finished, Relayed, Started, Text
from uia_lab.domain.requests import InferenceRequest, InferenceResult
from uia_lab.manager.loops import LoopBound


class ResponseStream:
    """The events of one answer; leaving it, closing it or dropping it cancels the work outside.

    It may be read on another loop than the manager's: each step is then carried over.

    Args:
        request: The request.
        events: The journey.
        loops: Where the manager lives.
    """

    def __init__(
        self,
        request: InferenceRequest,
        events: AsyncGenerator[Event, None],
        loops: LoopBound,
    ) -> None:
        self.request = request
        self._events = events
        self._loops = loops

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._loops.is_here:
            return await anext(self._events)
        event = await self._loops.carry(lambda: anext(self._events, None))
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the request; nothing happens if it has ended."""
        await self._loops.carry(self._events.aclose)

    async def fail(self, error: Exception) -> None:
        """Ends the request as failed, where what its backend gave cannot be shown to whoever asked.

        Args:
            error: What the caller is told; nothing happens if the request has ended.
        """
        # The journey ends with the very error, which is the caller's to raise.
        with suppress(type(error), StopAsyncIteration):
            await self._loops.carry(lambda: self._events.athrow(error))

    async def result(self) -> InferenceResult:
        """Reads to the end and gives the whole answer."""
        chunks: list[Chunk] = []
        backend_id = ""
        model = self.request.model
        async with self:
            async for event in self:
                if isinstance(event, Started):
                    backend_id = event.backend_id
                    model = event.decision.get("model", model)
                elif isinstance(event, Chunk):
                    chunks.append(event)
                elif isinstance(event, Relayed):
                    chunks += event.chunks()
                elif isinstance(event, Finished):
                    result = event.result
                    if event.last is not None:
                        chunks += event.last.chunks()
                        result = _text(chunks) if result is None else result
                    return InferenceResult(
                        self.request.id,
                        result,
                        model,
                        self.request.task,
                        backend_id,
                        event.usage,
                        event.finish_reason,
                        event.attempts,
                        tuple(chunks),
                        event.finish_reasons,
                    )
        raise BackendFailed("the answer ended without its end")


def _text(chunks: list[Chunk]) -> str:
    """The text of the first choice."""
    return "".join(
        chunk.delta.text for chunk in chunks if chunk.choice == 0 and isinstance(chunk.delta, Text)
    )
