"""Makes a function a backend of a uia_lab server elsewhere: the worker's end of ``/ws``."""

import asyncio
import inspect
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from uia_lab.access.secrets import Secret
from uia_lab.backends.socket_link import SocketLink
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.websocket_answers import end_of, error_fields, error_of, piece_of
from uia_lab.dialects.websocket_requests import LEAVING, REPLACED, Registration, executed
from uia_lab.domain.backends import BackendCapabilities
from uia_lab.domain.callables import CallableBackend
from uia_lab.domain.errors import (
    BackendFailed,
    BadRequest,
    InferenceError,
    QueueFull,
)
from uia_lab.domain.events import Chunk, Event, Finished
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION, canonical_task

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 1024 * 1024
"""Of one message; the server refuses larger ones."""
_LATER = frozenset({408, 424, 425, 429})
"""Refusals that another attempt may not meet."""
_NO_ID = re.compile(r"[^A-Za-z0-9._:/@+-]")

OnError = Callable[[InferenceRequest, BaseException], None]


def backend_id_of(model: str, suffix: str) -> str:
    """An id for the backend that serves a model, told apart from others by its suffix."""
    return f"{_NO_ID.sub('-', model).lstrip('._:/@+-')[:100] or 'function'}-{suffix}"


def log_error(request: InferenceRequest, error: BaseException) -> None:
    """Logs what a function raised, with its traceback."""
    log.error("the function failed on %s", request.id, exc_info=error)


class ServedFunction(CallableBackend):
    """A function as a backend whose errors are its owner's to see; a caller is only told that it failed.

    Args:
        function: A function, generator, async function or async generator; it is called with those of
            ``request, task, model, inputs, parameters`` that it accepts.
        model: Name of the model it stands for.
        task: What it does.
        on_error: Called with the request and what the function raised.
        threads: Threads for synchronous calls.

    Raises:
        BadRequest: Not callable, it needs an argument that is not offered, or the task is unknown.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        model: str,
        task: str = TEXT_GENERATION,
        *,
        on_error: OnError = log_error,
        threads: int = 4,
    ) -> None:
        if not callable(function):
            raise BadRequest(f"only a function can be served, not {function!r}", param="function")
        super().__init__(function, threads)
        if not isinstance(model, str) or not model:
            raise BadRequest("model must be a non-empty string", param="model")
        self.model = model
        self.task = canonical_task(task)
        self._on_error = on_error

    @property
    def streams(self) -> bool:
        """Whether answers come in pieces."""
        call = getattr(type(self.function), "__call__", None)  # noqa: B004 - its kind is wanted, not whether
        return self._is_async_generator or any(map(inspect.isgeneratorfunction, (self.function, call)))

    @property
    def capabilities(self) -> BackendCapabilities:
        """What it can do."""
        return BackendCapabilities({self.task}, {self.model}, supports_streaming=self.streams, external=False)

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The function's answer; an error of our own tree passes as it is."""
        events = super().infer(request)
        try:
            async with aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    yield event
        except InferenceError:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - user code raises anything
            self._on_error(request, error)
            raise BackendFailed(
                f"the function that serves {self.model!r} failed; its owner has the traceback"
            ) from None


class Worker:
    """Serves a function as a backend of a server, over one WebSocket that is opened again when it breaks.

    ``asyncio.run(Worker(url, key, function, model="shout").run())`` in a script serves until it is ended.

    Args:
        url: Address of the server, for example ``http://127.0.0.1:8000/``.
        key: A key of that server with the scope ``admin``: only administrators add backends.
        function: The function, or a ServedFunction.
        model: Name of the model it stands for.
        task: What it does.
        backend_id: Id of the backend; of two workers with one id the later one serves.
        name: Name for people.
        max_concurrency: Calls at once.
        on_error: Called with the request and what the function raised.

    Raises:
        BadRequest: A bad argument.
    """

    def __init__(
        self,
        url: str,
        key: str | Secret | None,
        function: Callable[..., Any] | ServedFunction,
        *,
        model: str,
        task: str = TEXT_GENERATION,
        backend_id: str | None = None,
        name: str | None = None,
        max_concurrency: int = 4,
        on_error: OnError = log_error,
    ) -> None:
        if type(max_concurrency) is not int or not 1 <= max_concurrency <= 1000:
            raise BadRequest("max_concurrency must be a whole number from 1 to 1000", param="max_concurrency")
        if not isinstance(function, ServedFunction):
            # One thread more: a call that was left may still be in its last step when the next one comes.
            function = ServedFunction(function, model, task, on_error=on_error, threads=2 * max_concurrency)
        self.function = function
        backend_id = backend_id or backend_id_of(model, uuid.uuid4().hex[:6])
        self.registration = Registration(
            id=backend_id,
            name=name or model,
            tasks=(function.task,),
            models=(model,),
            max_concurrency=max_concurrency,
            streaming=function.streams,
        )
        secret = Secret(key) if isinstance(key, str) else key
        self._link = SocketLink(
            url,
            backend_id,
            lambda: secret,
            opened=self._opened,
            receive=self._receive,
            lost=self._lost,
        )
        self._link.farewell = LEAVING
        self._ready = asyncio.Event()
        self._registered = False
        self._refused: InferenceError | None = None
        self._calls: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Worker {self.registration.id} at {self._link.endpoint}>"

    @property
    def connected(self) -> bool:
        """Whether the server has it as a backend now."""
        return self._registered

    async def run(self) -> None:
        """Serves until it is cancelled, taken out, or replaced by another worker with its id.

        Raises:
            Unauthenticated: The server does not take the key.
            NotAllowed: The key may not add backends.
            BadRequest: The server does not take the registration.
            BackendFailed: There is no WebSocket door at that address.
        """
        try:
            await self._link.run(give_up=self._is_final)
        except InferenceError:
            if self._refused is not None:
                raise
        finally:
            self._refused = self._refused or BackendFailed("the worker has ended")
            self._ready.set()
            self._end_calls()

    async def ready(self) -> None:
        """Waits until the server has it as a backend; :meth:`run` runs meanwhile.

        Raises:
            InferenceError: The server does not take it.
        """
        await self._ready.wait()
        if self._refused is not None:
            raise self._refused

    def _is_final(self, error: InferenceError) -> bool:
        status = self._link.refused or 0
        if self._refused is None and 400 <= status < 500 and status not in _LATER:
            self._refused = error
        return self._refused is not None or self._link.close_code == REPLACED

    async def _opened(self, greeting: Mapping[str, Any]) -> None:
        del greeting
        backend = {
            "id": self.registration.id,
            "name": self.registration.name,
            "tasks": list(self.registration.tasks),
            "models": list(self.registration.models),
            "max_concurrency": self.registration.max_concurrency,
            "streaming": self.registration.streaming,
        }
        await self._link.send("register", backend=backend)

    async def _receive(self, message: dict[str, Any], size: int) -> None:
        del size
        request_id = message.get("request_id")
        match message.get("type"):
            case "execute" if isinstance(request_id, str):
                self._execute(request_id, message)
            case "abort" if isinstance(request_id, str):
                self._abort(request_id)
            case "registered":
                self._registered = True
                self._ready.set()
            case "error" if isinstance(request_id, str):
                # The server does not know the request any more.
                self._abort(request_id)
            case "error" if not self._registered:
                self._refused = error_of(message)
                raise self._refused
            case _:
                return

    def _lost(self, error: InferenceError) -> None:
        self._registered = False
        log.info("%s: %s", self.registration.id, error.message)
        self._end_calls()

    def _end_calls(self) -> None:
        for task in self._calls.values():
            task.cancel()

    def _abort(self, request_id: str) -> None:
        if (task := self._calls.get(request_id)) is not None:
            task.cancel()

    def _execute(self, request_id: str, message: dict[str, Any]) -> None:
        task = asyncio.create_task(self._call(request_id, message), name="uia-worker-call")
        self._calls[request_id] = task
        task.add_done_callback(lambda _: self._calls.pop(request_id, None))

    async def _call(self, request_id: str, message: dict[str, Any]) -> None:
        try:
            try:
                await self._answer(request_id, message)
            except BackendFailed as error:
                await self._send("fail", request_id, error=error.message, code=error.code)
            except InferenceError as error:
                await self._send("fail", request_id, error=error.message, **error_fields(error))
            except Exception as error:
                # An execute that cannot be read, or a result that has no JSON form: whoever asked is told.
                log.exception("%s could not be answered", request_id)
                text = f"the worker could not give its answer: {type(error).__name__}"
                await self._send("fail", request_id, error=text, code="backend_failed")
        except BackendFailed:
            # The connection is gone, and with it whoever asked.
            return

    async def _answer(self, request_id: str, message: dict[str, Any]) -> None:
        if len(self._calls) > 2 * self.registration.max_concurrency:
            raise QueueFull("the worker has more requests than it said it takes", retry_after=1.0)
        request = executed(message)
        async with aclosing(self.function.infer(request)) as events:
            async for event in events:
                if isinstance(event, Chunk) and request.stream:
                    await self._send("chunk", request_id, **piece_of(event))
                elif isinstance(event, Finished):
                    name, whole = ("complete", {}) if request.stream else ("result", {"result": event.result})
                    await self._send(name, request_id, **whole, **end_of(event))

    async def _send(self, name: str, request_id: str, /, **fields: Any) -> None:
        message = encode({"type": name, "request_id": request_id, **fields})
        if len(message) > MOST_BYTES:
            raise BadRequest(
                f"the answer is {len(message) / 2**20:.0f} MiB in one piece, and {MOST_BYTES // 2**20} is "
                "the most; ask for less at once, or let the function yield it in pieces"
            )
        await self._link.send_encoded(message)
