"""Functions of this process that are served as models."""

import contextlib
import contextvars
import functools
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from uia_lab.domain.errors import BadRequest, DeadlineExceeded, InferenceError
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.transport import CLOSED, Publication, Transport
from uia_lab.worker import ServedFunction, backend_id_of

Spawn = Callable[..., "Future[Any]"]

READY_S = 30.0
STOP_S = 5.0


class Serving:
    """A function that is served as a model. Called, it is the function itself.

    Attributes:
        model: Name of the model.
        task: What it does.
        backend_id: Id of the backend it is.
        where: In words, who serves it to others.
    """

    def __init__(
        self, function: ServedFunction, backend_id: str, publication: Publication, where: str
    ) -> None:
        self.model = function.model
        self.task = function.task
        self.backend_id = backend_id
        self.where = where
        self._function = function.function
        self._publication = publication
        self._stop: Callable[[], Any] | None = None
        self._began = False
        self._error: str | None = None
        self._ended = threading.Event()
        with contextlib.suppress(AttributeError):
            functools.update_wrapper(self, self._function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self._function(*args, **kwargs)

    @property
    def state(self) -> str:
        """``serving``, ``reconnecting``, ``stopped`` or ``failed``."""
        if self._ended.is_set():
            return "failed" if self._error else "stopped"
        return "serving" if self._publication.connected else "reconnecting"

    def stop(self) -> None:
        """Takes it out of the service; calls that run are cancelled. A second call does nothing."""
        if self._stop is not None:
            self._stop()
            self._ended.wait(STOP_S)

    def __repr__(self) -> str:
        why = f": {self._error}" if self._error else ""
        return f"<Serving {self.model!r} ({self.task}) at {self.where}, {self.state}{why}>"

    def begin(self, spawn: Spawn) -> None:
        """Publishes it, and waits until the service has it.

        Args:
            spawn: Runs a coroutine function on the loop that is to serve.

        Raises:
            InferenceError: The service does not take it, or not in time.
        """
        # The cell's context goes along, so that what is shown later still belongs to this cell.
        running = spawn(self._run, contextvars.copy_context())
        self._stop = running.cancel
        waiting = spawn(self._publication.ready)
        try:
            waiting.result(READY_S)
            self._began = True
        except BaseException as error:
            waiting.cancel()
            self.stop()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"{self.where} did not take {self.model!r} within {READY_S:g} s"
                ) from None
            raise

    async def _run(self, here: contextvars.Context) -> None:
        try:
            await self._publication.run()
        except InferenceError as error:
            self._error = error.message
            if self._began:
                here.run(_say, f"uia_lab: {self.model!r} is not served any more: {error.message}\n")
        finally:
            self._ended.set()


class Servings:
    """What one Lab serves. Towards a server it has a loop in a thread of its own, made when it is needed.

    Args:
        transport: Who serves.
        spawn: Runs a coroutine function on the Lab's loop, on which the service itself runs in local mode.
    """

    def __init__(self, transport: Transport, spawn: Spawn) -> None:
        self._transport = transport
        self._spawn = spawn
        self._closed = False
        self._threads: contextlib.AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._lock = threading.Lock()
        self._served: dict[str, Serving] = {}
        self._suffix = uuid.uuid4().hex[:6]
        self.ident: int | None = None

    def all(self) -> list[Serving]:
        """Those that are served."""
        return [serving for serving in self._served.values() if serving.state in ("serving", "reconnecting")]

    def publisher(
        self,
        model: str | None = None,
        task: str = TEXT_GENERATION,
        *,
        name: str | None = None,
        max_concurrency: int = 4,
    ) -> Callable[[Callable[..., Any]], Serving]:
        """Makes a function of this notebook a backend of the service, which everybody who asks it can use.

        It serves while cells run, and until it is stopped, the Lab is closed or the kernel ends. The same
        model served again from here, as when its cell is run again, replaces it. What the function raises is
        shown in the notebook; a caller is only told that it failed::

            @lab.serve(model="shout")
            def shout(inputs):
                yield from (message["content"].upper() for message in inputs)

        Args:
            model: Name it can be asked for; the function's name when absent.
            task: What it does.
            name: Its name in tables; the model's when absent.
            max_concurrency: Calls at once; a plain function or generator has a thread for each.

        Returns:
            A decorator. What it gives can be called like the function and stopped with ``stop()``.

        Raises:
            BadRequest: The function needs an argument that is not offered (``request, task, model, inputs,
                parameters`` are), or a bad argument.
            NotAllowed: The key may not add backends.
            DeadlineExceeded: The service did not take it in time.
        """
        if callable(model):
            raise BadRequest("write @lab.serve() with parentheses", param="model")

        def decorate(function: Callable[..., Any]) -> Serving:
            if self._closed:
                raise RuntimeError(CLOSED)
            chosen = model if model is not None else getattr(function, "__name__", "<nameless>")
            if chosen.startswith("<"):
                raise BadRequest("the function has no name; write @lab.serve(model=...)", param="model")
            return self._publish(function, chosen, task, name or chosen, max_concurrency)

        return decorate

    def _publish(
        self, function: Callable[..., Any], model: str, task: str, name: str, max_concurrency: int
    ) -> Serving:
        """Publishes a function; one of the same model and task that is served from here is replaced."""
        if isinstance(function, Serving):
            function = function._function  # noqa: SLF001 - served under a second name
        here = contextvars.copy_context()

        def show(request: InferenceRequest, error: BaseException) -> None:
            here.run(_show, model, request, error)

        # One that was left counts until its function comes back: room for those that take its place.
        served = ServedFunction(function, model, task, on_error=show, threads=2 * max_concurrency)
        backend_id = backend_id_of(model, self._suffix)
        publication = self._transport.publish(served, backend_id, name, max_concurrency)
        serving = Serving(served, backend_id, publication, self._transport.where)
        serving.begin(self._spawner())
        old, self._served[backend_id] = self._served.get(backend_id), serving
        if old is not None:
            old.stop()
        return serving

    @property
    def any(self) -> bool:
        """Whether there is something to close."""
        return bool(self._served)

    def close(self) -> None:
        """Stops all of it; nothing is served any more."""
        self._closed = True
        for serving in list(self._served.values()):
            serving.stop()
        threads, self._threads, self._portal = self._threads, None, None
        if threads is not None:
            threads.__exit__(None, None, None)

    def _spawner(self) -> Spawn:
        if self._transport.kind == "local":
            return self._spawn
        with self._lock:
            if self._portal is None:
                self._threads = start_blocking_portal(name="uia-serve")
                self._portal = self._threads.__enter__()
                self.ident = self._portal.call(threading.get_ident)
            return self._portal.start_task_soon


def _show(model: str, request: InferenceRequest, error: BaseException) -> None:
    lines = traceback.format_exception(type(error), error, _own_frames(error.__traceback__))
    _say(f"uia_lab: {model!r} failed on {request.id}\n{''.join(lines)}")


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from where the function begins; ours before it tell nobody anything."""
    at = trace
    while at is not None and str(at.tb_frame.f_globals.get("__name__", "")).startswith("uia_lab."):
        at = at.tb_next
    return at or trace


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
