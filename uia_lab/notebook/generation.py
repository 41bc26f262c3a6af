"""The record of one generation: text, figures and outcome, whoever shows it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from uia_lab.domain.errors import BackendFailed, BadRequest, Cancelled, DeadlineExceeded, InferenceError
from uia_lab.domain.events import Attempted, Chunk, Event, Finished, Started, Switched, Text, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.notebook.generation_html import generation_html, seconds, turn_words
from uia_lab.notebook.snippet import openai_snippet

Again = Callable[["Generation", str | None], "Generation"]


@dataclass(frozen=True, slots=True)
class Turn:
    """The moment an answer went on at another backend.

    Args:
        offset: Characters of the text before it.
        from_id: Who broke off.
        to_id: Who went on.
        reason: Why, in words.
        at_s: Seconds from the request to it.
    """

    offset: int
    from_id: str
    to_id: str
    reason: str
    at_s: float


class Presenter(Protocol):
    """Shows a generation where its reader is; the record itself knows nothing of widgets."""

    def begin(self, generation: "Generation") -> None:
        """Opens the view, before the request is sent; in place of an earlier one where there is one."""

    def end(self, generation: "Generation") -> None:
        """Closes the view and leaves behind what a saved notebook keeps."""

    def show(self, generation: "Generation") -> None:
        """Shows it as the value of a cell."""

    def waited(self, generation: "Generation") -> None:
        """Shows its end where it stands, on behalf of the cell that has waited for it."""


class Generation:
    """One answer as it arrives, and as it was.

    It is filled from one thread (the Lab's) and read from any. ``str(generation)`` is the text, and
    ``await generation`` waits for its end where the thread has a running event loop.

    Args:
        prompt: What was asked.
        model: The model asked for, if one was named.
        stop: Asks for the end of the request.
        presenter: Who shows it when it is the value of a cell.
        request: All of what was asked, for whoever asks again.
        again: Asks again: this record, and the backend or None for any other one.
        url: Address of who serves; None where nothing listens.
        clock: Monotonic seconds.

    Attributes:
        turns: Where the text went on at another backend.
        retried: The record of asking again, if somebody did.
        shown: Whether a reader has it before them.
    """

    def __init__(
        self,
        prompt: str,
        model: str | None = None,
        *,
        stop: Callable[["Generation"], None] | None = None,
        presenter: Presenter | None = None,
        request: InferenceRequest | None = None,
        again: Again | None = None,
        url: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.prompt = prompt
        self.model = model
        self.request_id: str | None = None
        self.backend: str | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.attempts: tuple[Attempted, ...] = ()
        self.error: InferenceError | None = None
        self.turns: tuple[Turn, ...] = ()
        self.retried: Generation | None = None
        self.request = request
        self.shown = False
        self._again = again
        self._url = url
        self._clock = clock
        self._stop = stop
        self.presenter = presenter
        self._pieces: list[str] = []
        self._began = clock()
        self._first: float | None = None
        self._end: float | None = None
        self._over = False
        self._ended = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._kept: Any = None

    @property
    def text(self) -> str:
        """The text so far; the whole answer once ``done``."""
        return "".join(self._pieces)

    @property
    def state(self) -> str:
        """``waiting``, ``streaming``, ``done``, ``stopped`` or ``failed``."""
        if not self._over:
            return "waiting" if self._first is None else "streaming"
        if self.error is not None:
            return "failed"
        return "stopped" if self.finish_reason == "cancelled" else "done"

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._over

    @property
    def elapsed(self) -> float:
        """Seconds from the request to now, or to its end."""
        return (self._end or self._clock()) - self._began

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the request to its first text, as seen in this kernel."""
        return None if self._first is None else self._first - self._began

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first a second; while it streams, a chunk counts as a token.

        None where the answer came in one piece, which tells nothing of it.
        """
        if self._first is None or len(self._pieces) < 2:
            return None
        tokens = self.usage.output_tokens if self.usage else len(self._pieces)
        seconds = (self._end or self._clock()) - self._first
        return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None

    def stop(self) -> None:
        """Asks for its end and returns at once; an ended one stays as it is."""
        if not self.done and self._stop is not None:
            self._stop(self)

    def wait(self, timeout: float | None = None) -> "Generation":
        """Waits for the end. An interrupt (Ctrl-C, the kernel's stop button) cancels the request.

        Args:
            timeout: Seconds to wait at most; the request goes on when they have passed.

        Raises:
            TimeoutError: It had not ended by then.
        """
        try:
            if not self._ended.wait(timeout):
                raise TimeoutError(f"the generation has not ended within {timeout:g} s; it is still running")
        except KeyboardInterrupt:
            self.stop()
            # Long enough for the cancellation to arrive, short enough to feel like an interrupt.
            self._ended.wait(2)
            raise
        if self.presenter is not None:
            self.presenter.waited(self)
        return self

    def __await__(self) -> Generator[Any, Any, "Generation"]:
        return self._end_of_it().__await__()

    async def _end_of_it(self) -> "Generation":
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def look() -> None:
            if self.done:
                with contextlib.suppress(RuntimeError):  # the loop of whoever waited is gone
                    loop.call_soon_threadsafe(ended.set)

        self.subscribe(look)
        look()
        await ended.wait()
        if self.presenter is not None:
            self.presenter.waited(self)
        return self

    def keep(self, thing: Any) -> None:
        """Keeps a thing alive until it has ended."""
        self._kept = thing
        self.subscribe(self._let_go)
        self._let_go()

    def _let_go(self) -> None:
        if self.done:
            self._kept = None

    def retry(self, backend: str | None = None) -> "Generation":
        """Asks the same of somebody else and returns at once; what is shown of this one gives way to it.

        Args:
            backend: Id of the backend to ask; None for any other than those that were tried.

        Returns:
            The new record, which is :attr:`retried` from now on.

        Raises:
            BadRequest: It has not ended yet.
        """
        if not self.done:
            raise BadRequest("it is still running: stop it first")
        if self._again is None:
            raise BadRequest("no Lab made this record, so nobody can ask again")
        self.retried = self._again(self, backend)
        return self.retried

    def to_openai(self) -> str:
        """A script that asks the same with the openai package; no key is written in it."""
        if self.request is None:
            raise BadRequest("no Lab made this record, so nobody knows what was asked")
        return openai_snippet(self.request, self._url)

    @property
    def tried(self) -> frozenset[str]:
        """Ids of the backends that worked on it, as far as they are known."""
        named = self.request.routing.backend_id if self.request is not None else None
        known = {self.backend, named, *(attempt.backend_id for attempt in self.attempts)}
        return frozenset(filter(None, known))

    def raise_for_error(self) -> None:
        """Raises the error it failed with, if it did; being stopped is not an error."""
        if self.error is not None:
            # Without the trail through the Lab's own thread, which tells a reader nothing.
            raise self.error.with_traceback(None)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls a function after every change, in the thread that fills the record."""
        self._listeners.append(listener)

    def feed(self, event: Event, request_id: str | None = None) -> None:
        """Takes the next event of the answer."""
        if self.done:
            return
        self.request_id = request_id or self.request_id
        match event:
            case Started(backend_id=backend):
                self.backend = backend or self.backend
            case Switched(from_id=before, to_id=backend, reason=reason):
                self.backend = backend
                turn = Turn(len(self.text), before, backend, reason, self._clock() - self._began)
                self.turns = (*self.turns, turn)
            case Chunk(delta=Text(text=text), choice=0) if text:
                self._first = self._first or self._clock()
                self._pieces.append(text)
            case Finished():
                self._finish(event)
                return
        self._changed()

    def fail(self, error: BaseException) -> None:
        """Ends it with an error; :class:`Cancelled` ends it as stopped."""
        if self.done:
            return
        if isinstance(error, Cancelled):
            self.finish_reason = "cancelled"
        elif isinstance(error, InferenceError):
            self.error = error
        elif isinstance(error, TimeoutError):
            self.error = DeadlineExceeded(str(error) or "no answer in time")
        else:
            self.error = BackendFailed(f"{type(error).__name__}: {error}")
        self._close()

    def _finish(self, event: Finished) -> None:
        if isinstance(event.result, str) and event.result != self.text:
            self._pieces = [event.result]
            self._first = self._first or self._clock()
        self.usage = event.usage
        self.finish_reason = event.finish_reason
        self.attempts = event.attempts or self.attempts
        if event.attempts:
            self.backend = event.attempts[-1].backend_id
        self._close()

    def _close(self) -> None:
        self._end = self._clock()
        self._over = True
        self._changed()
        # Whoever waits goes on when those who show it have: the end of its cell is the end of what it shows.
        self._ended.set()

    def _changed(self) -> None:
        for listener in self._listeners:
            # Whoever watches must not be able to break the answer itself.
            with contextlib.suppress(Exception):
                listener()

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of each figure there is, in the order they are shown."""
        pairs: list[tuple[str, str]] = []
        if self.time_to_first_token is not None:
            pairs.append(("first token", seconds(self.time_to_first_token)))
        if self.tokens_per_second is not None:
            pairs.append(
                ("speed", f"{self.tokens_per_second:.{0 if self.tokens_per_second >= 10 else 1}f} tok/s")
            )
        if self.usage is not None:
            about = "about " if self.usage.estimated else ""
            pairs.append(("tokens", f"{about}{self.usage.input_tokens} in, {self.usage.output_tokens} out"))
        if self.backend:
            pairs.append(("backend", self.backend))
        if self.model:
            pairs.append(("model", self.model))
        return pairs

    def summary(self, *, error: bool = True) -> str:
        """State and figures in one line.

        Args:
            error: Whether to say why it failed.
        """
        state = f"failed: {self.error.message}" if self.error and error else self.state
        if self.finish_reason == "length":
            state += " (cut at max_tokens)"
        return " · ".join([state, *(f"{name} {value}" for name, value in self.facts())])

    def html(self, mark: str = "") -> str:
        """A still picture of it for saved notebooks, readable without any style sheet too.

        Args:
            mark: By which a live page finds it, to add its buttons.
        """
        return generation_html(self, mark)

    def to_text(self) -> str:
        """Text, where it went on elsewhere, and its figures."""
        turns = "".join(f"\n[{turn_words(turn)} after {turn.offset} characters]" for turn in self.turns)
        return f"{self.text}\n{turns}\n[{self.summary()}]"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": self.to_text(), "text/html": self.html()}

    def _ipython_display_(self) -> None:
        if self.presenter is not None:
            self.presenter.show(self)
            return
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"<Generation {self.state} {shown!r}>"
