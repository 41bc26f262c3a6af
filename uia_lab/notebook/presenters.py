"""Who shows a generation: a widget in a notebook, standard output in a terminal, nobody in a script."""

import sys
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from uia_lab.notebook.generation import Generation, Presenter

if TYPE_CHECKING:
    from uia_lab.notebook.widgets.generation_view import GenerationView


KEPT_VIEWS = 20
_ended: deque[Any] = deque()

Places: TypeAlias = Callable[[Generation, Callable[[list[dict[str, str]]], None]], None]
"""Tells, a moment later, which backends may be asked what a generation asked."""


def shell() -> Any:
    """The running IPython shell, or None; IPython is not imported for it."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel, where widgets make sense."""
    return getattr(shell(), "kernel", None) is not None


def presenter_here(*, direct: bool, places: Places) -> Presenter | None:
    """The presenter that suits this process.

    Args:
        direct: Whether a browser may be able to reach the service without the kernel.
        places: Finds out which backends may be asked what a generation asked.
    """
    if in_kernel():
        return CellPresenter(direct=direct, places=places)
    return TerminalPresenter() if shell() is not None else None


class CellPresenter:
    """A live widget while it runs; afterwards text and HTML in its place.

    The widget leaves the output at the end, because a saved notebook that is opened again without its
    kernel shows "model not found" for a widget, and the text for HTML. Unseen it lives on for a while, and
    while it does a page has its buttons below the text.
    """

    def __init__(self, *, direct: bool, places: Places) -> None:
        self._direct = direct
        self._places = places
        self._display_id = uuid.uuid4().hex
        self._view: GenerationView | None = None
        self._cell: int | None = None

    def begin(self, generation: Generation) -> None:
        """Shows the widget in the running cell."""
        from IPython.display import display

        from uia_lab.notebook.widgets.generation_view import GenerationView

        first = self._cell is None
        self._view = GenerationView(generation, direct=self._direct, places=self._places)
        if first:
            self._cell = shell().execution_count
        bundle = self._view._repr_mimebundle_()
        display(bundle, raw=True, display_id=self._display_id, update=not first)

    def end(self, generation: Generation) -> None:
        """Puts the still form in the widget's place."""
        from IPython.display import display

        view = self._view
        if view is None or view.generation is not generation:
            return
        self._view = None
        view.flush()
        display(view.still(), raw=True, display_id=self._display_id, update=True)
        keep_view(view)

    def show(self, generation: Generation) -> None:
        """Shows it again in a later cell; the cell that made it shows it already."""
        from IPython.display import display

        if self._cell == shell().execution_count:
            return
        if generation.retried is not None:
            # Its place belongs to the newer one.
            display(generation._repr_mimebundle_(), raw=True)
            return
        view = self._view
        display((view or generation)._repr_mimebundle_(), raw=True, display_id=self._display_id)

    def waited(self, generation: Generation) -> None:
        """Shows its end once more, for those who execute notebooks without a page.

        They hear only the cell that runs, and :meth:`end` of one that nobody waited for at first belongs to
        a cell that has ended.
        """
        from IPython.display import display

        elsewhere = self._cell is not None and self._cell != shell().execution_count
        # The place of one that was asked again belongs to the newer one.
        if elsewhere and generation.retried is None:
            bundle = generation._repr_mimebundle_()
            display(bundle, raw=True, display_id=self._display_id, update=True)


def keep_view(view: Any) -> None:
    """Lets the newest of the views that have ended live on, and closes those that are too many."""
    _ended.append(view)
    while len(_ended) > KEPT_VIEWS:
        _ended.popleft().close()


class TerminalPresenter:
    """Writes the text to standard output as it comes."""

    def __init__(self) -> None:
        self._written = 0
        self._shown = False

    def begin(self, generation: Generation) -> None:
        """Starts to follow it."""
        self._shown, self._written = True, 0
        generation.subscribe(lambda: self._write(generation.text))

    def end(self, generation: Generation) -> None:
        """Ends the text with its figures."""
        self._write(generation.text)
        sys.stdout.write(f"\n[{generation.summary()}]\n")
        sys.stdout.flush()

    def show(self, generation: Generation) -> None:
        """Nothing the second time: it stands above."""
        if not self._shown:
            sys.stdout.write(f"{generation.text}\n\n[{generation.summary()}]\n")
        self._shown = False

    def waited(self, generation: Generation) -> None:
        """Nothing: it has been written as it came."""

    def _write(self, text: str) -> None:
        piece, self._written = text[self._written :], max(self._written, len(text))
        if piece:
            sys.stdout.write(piece)
            sys.stdout.flush()
