"""Lab: the synchronous face of :class:`AsyncLab`, which does the work on a loop in a thread of its own."""

import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

from uia_lab.notebook.asking import answered, blocking, mirrors
from uia_lab.notebook.async_lab import AsyncLab
from uia_lab.notebook.batch import Batch
from uia_lab.notebook.batch_prompts import MOST
from uia_lab.notebook.chat import Chat
from uia_lab.notebook.comparison import Comparison
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.generations import text_request
from uia_lab.notebook.loop_thread import LoopThread
from uia_lab.notebook.presenters import in_kernel
from uia_lab.notebook.serving import Serving, Servings
from uia_lab.notebook.transport import CLOSED, Transport

T = TypeVar("T")


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

    # What waits is written in AsyncLab, and takes one line here.
    models = answered(AsyncLab.models)
    keys = answered(AsyncLab.keys)
    backends = answered(AsyncLab.backends)
    aliases = answered(AsyncLab.aliases)
    peers = blocking(AsyncLab.peers)
    hardware = blocking(AsyncLab.hardware)
    status = blocking(AsyncLab.status)
    balance = blocking(AsyncLab.balance)
    explain = blocking(AsyncLab.explain)
    request = blocking(AsyncLab.request)
    set_strategy = blocking(AsyncLab.set_strategy)
    embed = blocking(AsyncLab.embed)
    requests = blocking(AsyncLab.requests)
    plot_latency = blocking(AsyncLab.plot_latency)
    plot_share = blocking(AsyncLab.plot_share)
    plot_tokens = blocking(AsyncLab.plot_tokens)
    plot_compare = blocking(AsyncLab.plot_compare)
    report = blocking(AsyncLab.report)
    replay = blocking(AsyncLab.replay)

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._thread = LoopThread("uia-lab")
        self._async: AsyncLab = self._thread.portal.call(_made, transport, self._thread)
        self._finalizer = weakref.finalize(self, _shut, self._thread, self._async)
        try:
            self._ask(AsyncLab.open, self._async)
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """In words, who serves."""
        return self._async.where

    @property
    def instance_id(self) -> str:
        """Id of the service."""
        return self._async.instance_id

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return not self._finalizer.alive

    @mirrors(AsyncLab.generate)
    def generate(
        self, prompt: str, model: str | None = None, *, wait: bool = True, show: bool = True, **options: Any
    ) -> Generation:
        """Shown and waited for in the caller's own thread, whose cell it belongs to."""
        request = text_request(prompt, model, **options)
        if wait:
            self._thread.refuse_own()
        shown = self._async.generations.begin(request, prompt, show=show, wait=wait)
        # Whoever keeps the answer keeps the Lab that fills it.
        generation = shown.generation
        if not wait:
            generation.keep(self)
            return generation
        try:
            generation.wait()
        finally:
            shown.end()
        generation.raise_for_error()
        return generation

    @mirrors(AsyncLab.chat)
    def chat(self, *args: Any, **options: Any) -> Chat:
        """Its turns are asked for on the Lab's loop."""
        chat = self._async.chat(*args, **options)
        # Whoever keeps the conversation keeps the Lab that answers.
        chat.keep(self)
        return chat

    @mirrors(AsyncLab.compare)
    def compare(
        self,
        prompt: str,
        models: Sequence[str] | None = None,
        *,
        backends: Sequence[str] | None = None,
        wait: bool = True,
        show: bool = True,
        **options: Any,
    ) -> Comparison:
        """Shown and waited for in the caller's own thread, whose cell it belongs to."""
        if wait:
            self._thread.refuse_own()
        comparison = self._async.generations.compare(prompt, models, backends, options)
        comparison.keep(self)
        if show:
            comparison.show(direct=self._async.generations.direct)
        return comparison.wait() if wait else comparison

    @mirrors(AsyncLab.map)
    def map(self, prompts: Any, *, wait: bool = True, **options: Any) -> Batch:
        """Waited for in the caller's own thread, so that an interrupt leaves what is answered."""
        if wait:
            self._thread.refuse_own()
        if isinstance(prompts, Iterator):
            # A generator may ask this very Lab, which its own loop could not.
            prompts = list(islice(prompts, MOST + 1))
        batch = self._ask(AsyncLab.map, self._async, prompts, wait=False, **options)
        # Whoever keeps the answers keeps the Lab that gives them.
        batch.keep(self)
        return batch.wait() if wait else batch

    @mirrors(Servings.publisher)
    def serve(self, *args: Any, **options: Any) -> Callable[[Callable[..., Any]], Serving]:
        """Blocks until the service has it."""
        return self._async.servings.publisher(*args, **options)

    @property
    def served(self) -> list[Serving]:
        """The functions that are served from here."""
        return self._async.served

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
        report = self.status()
        if not in_kernel():
            return report._repr_mimebundle_()
        from uia_lab.notebook.widgets.dashboard import Dashboard

        bundle: dict[str, Any] = Dashboard(self, self._async.service, report)._repr_mimebundle_()
        return bundle

    def _ask(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Runs a coroutine function on the Lab's loop and waits for what it returns."""
        if self.closed:
            raise RuntimeError(CLOSED)
        return self._thread.ask(function, *args, **kwargs)


async def _made(transport: Transport, thread: LoopThread) -> AsyncLab:
    return AsyncLab(transport, ask=thread.ask)


def _shut(thread: LoopThread, lab: AsyncLab) -> None:
    """Ends what is served, the tasks, the transport, the loop and its thread, in this order."""
    if threading.get_ident() in (thread.ident, lab.servings.ident):
        # Collected in its own thread, which cannot wait for itself.
        threading.Thread(target=_shut, args=(thread, lab)).start()
        return
    lab.servings.close()
    thread.stop(lab.aclose)
