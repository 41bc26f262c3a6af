"""One prompt, several models or backends, side by side."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from uia_lab.notebook.cell_place import CellPlace
from uia_lab.notebook.comparison_html import comparison_html, comparison_text
from uia_lab.notebook.generation import Generation
from uia_lab.notebook.presenters import in_kernel, keep_view, shell

MOST = 12
_MILLION = 1_000_000
PRICES_S = 2.0


class Comparison(Sequence[Generation]):
    """Answers to one prompt, in the order they were asked for.

    Args:
        prompt: What was asked.
        labels: Name of each answer.
        generations: The answers.
        prices: Tells the backends' prices, by id, a moment later.
    """

    def __init__(
        self,
        prompt: str,
        labels: Sequence[str],
        generations: Sequence[Generation],
        prices: Callable[[Callable[[dict[str, dict[str, float]]], None]], None],
    ) -> None:
        self.prompt = prompt
        self.labels = tuple(labels)
        self._generations = tuple(generations)
        self._prices: dict[str, dict[str, float]] = {}
        self._priced = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._cell: int | None = None
        self._owner: Any = None
        for generation in self._generations:
            generation.subscribe(self._changed)
        prices(self._take_prices)

    @property
    def done(self) -> bool:
        """Whether all of them have ended."""
        return all(generation.done for generation in self._generations)

    def cost(self, index: int) -> float | None:
        """What an answer cost, by the price of the backend that gave it; None where that is not known.

        It is in the currency the price was given in, which is per million tokens.
        """
        generation = self._generations[index]
        price = self._prices.get(generation.backend or "")
        if price is None or generation.usage is None:
            return None
        usage = generation.usage
        cost = price.get("input", 0) * usage.input_tokens + price.get("output", 0) * usage.output_tokens
        return cost / _MILLION

    @property
    def fastest(self) -> int | None:
        """Index of the answer that was done first, where several are done."""
        times = [
            generation.elapsed if generation.state == "done" else math.inf for generation in self._generations
        ]
        if sum(math.isfinite(time) for time in times) < 2:
            return None
        return times.index(min(times))

    def stop(self) -> None:
        """Ends those that are still arriving."""
        for generation in self._generations:
            generation.stop()

    def wait(self, timeout: float | None = None) -> "Comparison":
        """Waits until all have ended; one that failed has its ``error``. An interrupt ends them all.

        Args:
            timeout: Seconds to wait for each at most.

        Raises:
            TimeoutError: One had not ended by then.
        """
        try:
            for generation in self._generations:
                generation.wait(timeout)
        except KeyboardInterrupt:
            self.stop()
            raise
        self._priced.wait(PRICES_S)
        return self

    def show(self, *, direct: bool) -> None:
        """Shows them below the running cell of a notebook; the still form stays when all have ended.

        Args:
            direct: Whether the browser may be able to reach the service.
        """
        if not in_kernel():
            return
        from uia_lab.notebook.widgets.compare_view import CompareView

        view = CompareView(self, direct=direct)
        self._cell = shell().execution_count
        place = CellPlace(view._repr_mimebundle_())
        ended = threading.Lock()

        def look() -> None:
            # Once, with the prices where they come: whoever is later than the first finds the lock taken.
            if self.done and self._priced.is_set() and ended.acquire(blocking=False):
                view.flush()
                place.put(view.still())
                keep_view(view)

        self.subscribe(look)
        look()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls a function after every change, in the thread that makes it."""
        self._listeners.append(listener)

    def _take_prices(self, prices: dict[str, dict[str, float]]) -> None:
        self._prices = prices
        self._priced.set()
        self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            # Whoever watches must not be able to break the answers themselves.
            with contextlib.suppress(Exception):
                listener()

    @overload
    def __getitem__(self, index: int) -> Generation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Generation]: ...
    def __getitem__(self, index: int | slice) -> Generation | Sequence[Generation]:
        return self._generations[index]

    def __len__(self) -> int:
        return len(self._generations)

    def __iter__(self) -> Iterator[Generation]:
        return iter(self._generations)

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.labels)}>"

    def still(self, mark: str = "") -> dict[str, str]:
        """The text and HTML forms that a saved notebook keeps.

        Args:
            mark: By which a live page finds the HTML, to add its buttons.
        """
        return {"text/plain": comparison_text(self), "text/html": comparison_html(self, mark)}

    def keep(self, owner: Any) -> None:
        """Keeps whoever answers alive for as long as the answers are."""
        self._owner = owner

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.still()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # The cell that made it shows it already.
        if self._cell is None or self._cell != getattr(shell(), "execution_count", None):
            display(self.still(), raw=True)
