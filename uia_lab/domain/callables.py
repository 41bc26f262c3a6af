"""A plain function, generator, async function or async generator as a backend."""

import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from uia_lab.domain.backends import BackendStatus, Probe
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.events import Chunk, Event, Finished, Result, Started, Text, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.threads import Threads

_OFFERED = ("request", "task", "model", "inputs", "parameters")
_END = object()


class CallableBackend:
    """Calls a function with those of ``request, task, model, inputs, parameters`` that it accepts.

    What it yields is streamed, what it returns is the answer. Synchronous functions run in threads of
    this backend; a thread cannot be interrupted, so a cancelled generator ends at its next ``yield`` and
    a cancelled function when it returns.

    Args:
        function: The callable.
        threads: Threads for synchronous calls.

    Raises:
        BadRequest: Not callable, or it needs an argument that is not offered.
    """

    def __init__(self, function: Callable[..., Any], threads: int = 32) -> None:
        if not callable(function):
            raise BadRequest(f"instance must be a Backend or a callable, not {function!r}", param="instance")
        self.function = function
        self._names = _accepted(function)
        method = getattr(type(function), "__call__", None)  # noqa: B004 - its kind is wanted, not whether
        self._is_async_generator = any(map(inspect.isasyncgenfunction, (function, method)))
        self._is_coroutine = any(map(inspect.iscoroutinefunction, (function, method)))
        self._threads = Threads(threads)

    @property
    def most(self) -> int | None:
        """Calls it can work on at once; None where they need no thread."""
        return None if self._is_async_generator or self._is_coroutine else self._threads.most

    async def start(self) -> None:
        """Nothing to get ready."""

    async def stop(self) -> None:
        """Nothing to close; a thread that is still in a call ends with it."""

    async def probe(self) -> Probe:
        """A function of this process is there as long as the process is."""
        return Probe(BackendStatus.HEALTHY, "in this process")

    async def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """Runs the function and turns what it gives into events."""
        inputs = request.inputs if request.messages is None else list(request.messages)
        offered = {
            "request": request,
            "task": request.task,
            "model": request.model,
            "inputs": inputs,
            "parameters": dict(request.parameters),
        }
        arguments = {name: offered[name] for name in self._names}
        yield Started("")
        pieces: list[Any] = []
        source = self._pieces(arguments)
        try:
            async for final, value in source:
                if isinstance(value, Finished):
                    yield value
                    return
                pieces.append(value)
                if not (final and len(pieces) > 1):
                    yield Chunk(len(pieces) - 1, _delta(value))
        finally:
            await source.aclose()
        yield Finished(_joined(pieces), _estimate(inputs, pieces))

    async def _pieces(self, arguments: Mapping[str, Any]) -> AsyncGenerator[tuple[bool, Any], None]:
        """Pairs (is the return value, value)."""
        if self._is_async_generator:
            async for value in self.function(**arguments):
                yield False, value
            return
        if self._is_coroutine:
            value = await self.function(**arguments)
        else:
            value = _END
            async with contextlib.aclosing(self._threads.call(lambda: self.function(**arguments))) as steps:
                async for final, piece in steps:
                    if final:
                        value = piece
                    else:
                        yield False, piece
            if value is _END:
                return
        if inspect.isawaitable(value):
            value = await value
        if hasattr(value, "__aiter__"):
            async for piece in value:
                yield False, piece
            return
        yield True, value


def _accepted(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return ("inputs",)
    if any(item.kind is item.VAR_KEYWORD for item in parameters):
        return _OFFERED
    for item in parameters:
        if item.name not in _OFFERED and item.default is item.empty and item.kind is not item.VAR_POSITIONAL:
            raise BadRequest(
                f"the function needs {item.name!r}; a backend is called with any of {', '.join(_OFFERED)}",
                param="instance",
            )
    return tuple(item.name for item in parameters if item.name in _OFFERED)


def _delta(value: Any) -> Text | Result:
    return Text(value) if isinstance(value, str) else Result(value)


def _joined(pieces: list[Any]) -> Any:
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return pieces[0] if len(pieces) == 1 else pieces


def _estimate(inputs: Any, pieces: list[Any]) -> Usage:
    """Words as a stand-in for tokens, marked as an estimate: a function has no tokenizer."""
    return Usage(len(str(inputs).split()), len(str(_joined(pieces)).split()), estimated=True)
