"""The Lab: one synchronous face over whichever transport serves it."""

import asyncio
import contextlib
import contextvars
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from anyio import CancelScope, move_on_after
from anyio.from_thread import BlockingPortal, start_blocking_portal

from uia_lab.domain.backends import BackendType, member
from uia_lab.domain.errors import BadRequest, Cancelled, DeadlineExceeded
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.notebook.backends import Backends
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.hardware import HardwareReport
from uia_lab.notebook.keys import Keys
from uia_lab.notebook.peers import Peers
from uia_lab.notebook.presenters import presenter_here
from uia_lab.notebook.serving import Serving, Servings
from uia_lab.notebook.status import StatusReport
from uia_lab.notebook.transport import Transport

T = TypeVar("T")

# Local mode starts a service behind its first question; a server answers in milliseconds.
QUESTION_S = 60.0
# The first embedding may load a model.
EMBED_S = 600.0
HARDWARE_S = 160.0


class Lab:
    """Inference from a notebook, in plain synchronous calls.

    It works inside the kernel's running event loop, because its own loop runs in a thread. Use it as a
    context manager or call :meth:`close`; a forgotten one is closed at the end of the process.

    Args:
        transport: Who serves.

    Raises:
        NotConnected: Nobody answers; the message says what to do.
        InferenceError: The service answers with an error, for example a wrong token.

    Attributes:
        where: In words, who serves.
        instance_id: Id of the service.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._threads = start_blocking_portal(name="uia-lab")
        self._portal: BlockingPortal = self._threads.__enter__()
        self._tasks: set[Future[Any]] = set()
        self._running: dict[Generation, Future[None]] = {}
        self._ident = self._portal.call(threading.get_ident)
        self._servings = Servings(transport, self._portal)
        self._finalizer = weakref.finalize(
            self,
            _shut,
            self._threads,
            self._portal,
            self._transport,
            self._tasks,
            self._servings,
            self._ident,
        )
        try:
            self.instance_id: str = self._ask(transport.status)["instance_id"]
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """In words, who serves."""
        return self._transport.where

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return not self._finalizer.alive

    @property
    def models(self) -> list[str]:
        """Names of the models that can be asked for."""
        return self._ask(self._transport.models)

    @property
    def keys(self) -> Keys:
        """The scoped keys of the server: a table, with ``create`` and ``revoke``."""
        return Keys(
            self._ask(self._transport.keys),
            lambda fields: self._ask(self._transport.create_key, fields),
            lambda key_id: self._ask(self._transport.revoke_key, key_id),
        )

    @property
    def backends(self) -> Backends:
        """Who can serve: a table, with ``add``, and ``["id"]`` to drain, enable, probe, weigh and remove."""
        transport = self._transport
        return Backends(
            self._ask(transport.backends),
            lambda fields: self._ask(transport.add_backend, fields),
            lambda backend_id, fields: self._ask(transport.change_backend, backend_id, fields),
            lambda backend_id: self._ask(transport.probe_backend, backend_id),
            lambda backend_id: self._ask(transport.remove_backend, backend_id),
        )

    def peers(self) -> Peers:
        """The network of peers: who lends and who may borrow; with ``invite()`` and ``accept(link)``.

        A peer that is asked reads the prompt: whoever runs it can see what you ask.
        """
        transport = self._transport
        return Peers(
            self._ask(transport.peers),
            lambda fields: self._ask(transport.invite_peer, fields),
            lambda invite_id: self._ask(transport.withdraw_invite, invite_id),
            lambda fields: self._ask(transport.accept_invite, fields),
            lambda peer_id, fields: self._ask(transport.trust_peer, peer_id, fields),
            lambda peer_id: self._ask(transport.revoke_peer, peer_id),
            live=self._peer_map,
        )

    def hardware(self) -> HardwareReport:
        """What the machine that serves has: cores, memory, devices, and what is missing and why."""
        return HardwareReport(self._ask(self._transport.hardware, deadline=HARDWARE_S))

    def status(self) -> StatusReport:
        """The status report: a mapping to programs, a live table in a notebook."""
        return StatusReport(self._ask(self._transport.status), live=self._board)

    def generate(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        wait: bool = True,
        backend: str | None = None,
        prefer: BackendType | str | Sequence[BackendType | str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,
        show: bool = True,
        **parameters: Any,
    ) -> Generation:
        """Generates text; in a notebook it streams into the cell, with a Stop button.

        Args:
            prompt: What to ask.
            model: Model name; None for the default model.
            system: Instruction that comes before the prompt.
            wait: Whether to wait for the end; False returns at once and the text goes on arriving.
            backend: Id of the only backend to use.
            prefer: Backend types to try first, best first.
            temperature: Sampling temperature; 0 for the likeliest text.
            max_tokens: Tokens to generate at most.
            seed: Seed of the sampling, where the backend has one.
            timeout: Seconds for everything, queueing included.
            show: Whether to show it as it arrives.
            **parameters: Further parameters by their OpenAI names (``top_p``, ``stop`` ...).

        Raises:
            InferenceError: With ``wait``, what the request failed with. Being stopped is no error.
        """
        if not isinstance(prompt, str) or not prompt:
            raise BadRequest("prompt must be a non-empty string", param="prompt")
        kinds = [prefer] if isinstance(prefer, str) else list(prefer or ())
        given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed, **parameters}
        asked: list[tuple[str, str | None]] = [("system", system), ("user", prompt)]
        request = InferenceRequest(
            TEXT_GENERATION,
            model,
            messages=[{"role": role, "content": text} for role, text in asked if text],
            parameters={name: value for name, value in given.items() if value is not None},
            stream=True,
            routing=RoutingHints(
                preferred_types=tuple(member(BackendType, kind, "prefer") for kind in kinds),
                backend_id=backend,
                deadline_s=timeout,
            ),
        )
        if wait:
            self._refuse_own_loop()
        presenter = presenter_here(direct=self._transport.kind == "server")
        generation = Generation(prompt, model, stop=self._stop, presenter=presenter)
        if show and presenter is not None:
            presenter.begin(generation)
        task = self._spawn(self._pump, generation, request)
        self._running[generation] = task
        task.add_done_callback(lambda _: self._running.pop(generation, None))
        if not wait:
            if show and presenter is not None:
                # The cell's context goes along, so that what is shown later still belongs to this cell.
                here = contextvars.copy_context()
                task.add_done_callback(lambda _: here.run(presenter.end, generation))
            return generation
        try:
            generation.wait()
        finally:
            if show and presenter is not None:
                presenter.end(generation)
        generation.raise_for_error()
        return generation

    @overload
    def embed(self, texts: str, model: str | None = None) -> np.ndarray: ...
    @overload
    def embed(self, texts: Iterable[str], model: str | None = None) -> np.ndarray: ...
    def embed(self, texts: str | Iterable[str], model: str | None = None) -> np.ndarray:
        """Embeddings as float32.

        Args:
            texts: One text or several.
            model: Model name; None for the default embedding model.

        Returns:
            Shape ``(d,)`` for one text, ``(n, d)`` for several.
        """
        single = isinstance(texts, str)
        rows = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(row, str) for row in rows):
            raise BadRequest("texts must be a string or strings", param="texts")
        if not rows:
            return np.empty((0, 0), np.float32)
        vectors = self._ask(self._transport.embed, rows, model, deadline=EMBED_S)
        return vectors[0] if single else vectors

    def serve(
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
            if self.closed:
                raise RuntimeError("this Lab is closed; uia_lab.connect() opens a new one")
            chosen = model if model is not None else getattr(function, "__name__", "<nameless>")
            if chosen.startswith("<"):
                raise BadRequest("the function has no name; write @lab.serve(model=...)", param="model")
            return self._servings.serve(function, chosen, task, name or chosen, max_concurrency)

        return decorate

    @property
    def served(self) -> list[Serving]:
        """The functions that are served from here."""
        return self._servings.all()

    def close(self) -> None:
        """Ends what runs and lets go of everything; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lab {'closed' if self.closed else self.where}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        if self.closed:
            return {"text/plain": repr(self)}
        return self.status()._repr_mimebundle_()

    def _board(self, report: dict[str, Any]) -> Any:
        """A live table of the backends, fed by the browser's socket or, failing that, from here."""
        from uia_lab.notebook.widgets.status_board import StatusBoard

        return StatusBoard(
            report,
            where=self.where,
            direct=self._transport.kind == "server",
            spawn=self._spawn,
            fetch=self._transport.status,
        )

    def _peer_map(self, report: dict[str, Any]) -> Any:
        """A live map of the peers, fed by the browser or, failing that, from here."""
        from uia_lab.notebook.widgets.peer_map import PeerMap

        return PeerMap(
            report,
            where=self.where,
            instance_id=self.instance_id,
            direct=self._transport.kind == "server",
            spawn=self._spawn,
            transport=self._transport,
        )

    def _ask(self, function: Callable[..., Awaitable[T]], *args: Any, deadline: float = QUESTION_S) -> T:
        """Runs a coroutine function on the Lab's loop and waits for what it returns."""
        self._refuse_own_loop()
        future = self._spawn(function, *args)
        try:
            return future.result(deadline)
        except TimeoutError:
            if future.done():
                raise
            raise DeadlineExceeded(f"no answer from {self.where} within {deadline:g} s") from None
        finally:
            future.cancel()

    def _refuse_own_loop(self) -> None:
        if threading.get_ident() == self._ident:
            raise RuntimeError(
                "an async function that is served in this process cannot wait for its own Lab; make it a "
                "plain function, which gets a thread, or ask with wait=False"
            )

    def _spawn(self, function: Callable[..., Awaitable[T]], *args: Any) -> "Future[T]":
        """Runs a coroutine function on the Lab's loop; closing the Lab ends it."""
        if self.closed:
            raise RuntimeError("this Lab is closed; uia_lab.connect() opens a new one")
        future = self._portal.start_task_soon(function, *args)
        self._tasks.add(future)
        future.add_done_callback(self._tasks.discard)
        return future

    async def _pump(self, generation: Generation, request: InferenceRequest) -> None:
        stream = self._transport.stream(request)
        try:
            async for event in stream:
                generation.feed(event, stream.request_id)
        except asyncio.CancelledError:
            generation.fail(Cancelled("stopped"))
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the record must end with it
            generation.fail(error)
        finally:
            with CancelScope(shield=True), move_on_after(2):
                await stream.aclose()

    def _stop(self, generation: Generation) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile, which ended it too
            self._spawn(self._cancel, generation)

    async def _cancel(self, generation: Generation) -> None:
        if generation.request_id is not None:
            with move_on_after(2), contextlib.suppress(Exception):
                await self._transport.cancel(generation.request_id)
        generation.fail(Cancelled("stopped"))
        # A request without an id yet is waiting for its first answer: hanging up is what cancels it.
        if (task := self._running.get(generation)) is not None:
            task.cancel()


def _shut(
    threads: contextlib.AbstractContextManager[Any],
    portal: BlockingPortal,
    transport: Transport,
    tasks: set[Future[Any]],
    servings: Servings,
    ident: int,
) -> None:
    """Ends what is served, the tasks, the transport, the loop and its thread, in this order."""
    if threading.get_ident() in (ident, servings.ident):
        # Collected in its own thread, which cannot wait for itself.
        threading.Thread(target=_shut, args=(threads, portal, transport, tasks, servings, ident)).start()
        return
    servings.close()
    for task in list(tasks):
        task.cancel()

    async def close() -> None:
        with move_on_after(10):
            await transport.aclose()
        # One turn of the loop lets closed sockets report their end before the loop itself goes.
        await asyncio.sleep(0)

    with contextlib.suppress(Exception):
        portal.call(close)
    with contextlib.suppress(Exception):
        portal.call(portal.stop, True)
    threads.__exit__(None, None, None)
