"""Many prompts, one after the other and some at a time: the record of a batch."""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from uia_lab.domain.errors import InferenceError
from uia_lab.domain.events import Usage
from uia_lab.notebook.frames import needed
from uia_lab.notebook.tables import html_table, text_table

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10
LONGEST = 80
INTERRUPT_S = 5.0
COLUMNS = ("prompt", "state", "backend", "text")


@dataclass(slots=True, repr=False)
class BatchItem:
    """One prompt of a batch and what became of it.

    Attributes:
        index: Its place in the batch.
        prompt: The prompt.
        state: ``waiting``, ``running``, ``done``, ``failed`` or ``stopped``.
        text: The answer; None unless it is done.
        error: Why it failed.
        backend: Who answered.
        model: The model asked for.
        usage: Tokens, where they are known.
        finish_reason: Why the answer ended.
        seconds: How long it took; None where it was taken over.
        kept: Where it was taken from, if an earlier run had answered it: ``file`` or ``log``.
    """

    index: int
    prompt: str
    state: str = "waiting"
    text: str | None = None
    error: InferenceError | None = None
    backend: str | None = None
    model: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    seconds: float | None = None
    kept: str | None = None

    def __repr__(self) -> str:
        became = _cut(self.text or "-") if self.error is None else self.error.message
        return f"<BatchItem {self.index}, {self.state}: {_cut(self.prompt)!r} → {became}>"


class Batch(Sequence[BatchItem]):
    """The prompts of one :meth:`uia_lab.Lab.map`, in order, as they are answered and as they were.

    It is filled from one thread (the Lab's) and read from any. ``await batch`` waits where there is an event
    loop.

    Args:
        items: The prompts.
        source: The DataFrame they come from, if they do.
    """

    def __init__(self, items: Sequence[BatchItem], source: "pd.DataFrame | None" = None) -> None:
        self._items = items
        self._source = source
        self._running: Future[None] | None = None
        self._stop: Callable[[], None] = lambda: None
        self._ended = threading.Event()
        self._owner: Any = None

    def keep(self, owner: Any) -> None:
        """Keeps whoever answers alive until it has ended."""
        self._owner = owner
        if self._running is not None:
            self._running.add_done_callback(self._let_go)

    def _let_go(self, _: "Future[None]") -> None:
        self._owner = None

    def begin(self, running: "Future[None]", stop: Callable[[], None]) -> None:
        """Takes what runs it, and what ends it; the Lab does this."""
        self._running, self._stop = running, stop
        running.add_done_callback(lambda _: self._ended.set())

    @property
    def texts(self) -> list[str | None]:
        """The answers in order; None where there is none."""
        return [item.text for item in self._items]

    @property
    def failed(self) -> list[BatchItem]:
        """Those that failed."""
        return [item for item in self._items if item.state == "failed"]

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each state."""
        counts = dict.fromkeys(("done", "failed", "stopped", "running", "waiting"), 0)
        for item in self._items:
            counts[item.state] += 1
        return counts

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Asks for its end and returns at once; what is answered already stays."""
        if not self.done:
            self._stop()

    def wait(self, timeout: float | None = None) -> "Batch":
        """Waits for the end. An interrupt (Ctrl-C, the kernel's stop button) ends it; what is answered stays.

        Args:
            timeout: Seconds to wait at most; it goes on when they have passed.

        Raises:
            TimeoutError: It had not ended by then.
            InferenceError: No prompt could be answered at all, for example for want of the model.
        """
        try:
            if not self._ended.wait(timeout):
                raise TimeoutError(f"the batch has not ended within {timeout:g} s; it is still running")
        except KeyboardInterrupt:
            self.cancel()
            self._ended.wait(INTERRUPT_S)
            return self
        self.raise_for_error()
        return self

    def raise_for_error(self) -> None:
        """Raises what ended the whole batch, if something did; a single prompt that failed does not."""
        if self._running is not None and self._running.done() and not self._running.cancelled():
            error = self._running.exception()
            if error is not None:
                raise error.with_traceback(None)

    def __await__(self) -> Generator[Any, Any, "Batch"]:
        return self._end_of_it().__await__()

    async def _end_of_it(self) -> "Batch":
        if self._running is not None:
            try:
                await asyncio.shield(asyncio.wrap_future(self._running))
            except asyncio.CancelledError:
                here = asyncio.current_task()
                left = here is not None and here.cancelling() > 0
                if left or not self._running.done():
                    self.cancel()
                    raise
        return self

    def frame(self) -> "pd.DataFrame":
        """The rows or prompts, with ``text``, ``state``, ``error``, ``backend``, ``tokens`` and ``seconds``.

        Raises:
            BadRequest: pandas is not installed.
        """
        pandas = needed("pandas")
        rows = self._items
        columns = {
            "text": pandas.array([item.text for item in rows], "string"),
            "state": pandas.array([item.state for item in rows], "string"),
            "error": pandas.array([item.error and item.error.message for item in rows], "string"),
            "backend": pandas.array([item.backend for item in rows], "string"),
            "tokens": pandas.array([item.usage and item.usage.output_tokens for item in rows], "Int64"),
            "seconds": pandas.array([item.seconds for item in rows], "Float64"),
        }
        if self._source is None:
            columns = {"prompt": pandas.array([item.prompt for item in rows], "string"), **columns}
            frame: pd.DataFrame = pandas.DataFrame(columns)
            return frame
        made: pd.DataFrame = self._source.assign(**columns)
        return made

    def summary(self) -> str:
        """How far it is, in one line."""
        counts = self.counts
        kept = sum(item.kept is not None for item in self._items)
        parts = [f"{counts['done']:,} of {len(self):,} done"]
        parts += [f"{count:,} {name}" for name, count in counts.items() if name != "done" and count]
        return " · ".join([*parts, *([f"{kept:,} from before"] if kept else [])])

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[BatchItem]:
        return iter(self._items)

    def __repr__(self) -> str:
        return text_table(self.summary(), COLUMNS, self._rows(), 4)

    def _repr_mimebundle_(self, **_: Any) -> Mapping[str, str]:
        more = len(self) - SHOWN
        left = f"<p>{escape(f'and {more:,} more: .frame() has them all')}</p>" if more > 0 else ""
        return {
            "text/plain": repr(self),
            "text/html": html_table(self.summary(), COLUMNS, self._rows(), 4) + left,
        }

    def _rows(self) -> list[list[str]]:
        return [
            [
                _cut(item.prompt),
                item.state,
                item.backend or "-",
                _cut(item.error.message if item.error else item.text or ""),
            ]
            for item in self._items[:SHOWN]
        ]


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
