"""Who shows a generation: a widget in a notebook, standard output in a terminal, nobody in a script."""

import sys
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from uia_lab.notebook.generation import Generation

if TYPE_CHECKING:
    from uia_lab.notebook.widgets.generation_view import GenerationView


class LivePresenter(Protocol):
    """Shows a generation while it runs, and once more when it has ended."""

    def begin(self, generation: Generation) -> None:
        """Opens the view, before the request is sent."""

    def end(self, generation: Generation) -> None:
        """Closes the view and leaves behind what a saved notebook keeps."""

    def show(self, generation: Generation) -> None:
        """Shows it as the value of a cell."""

    def waited(self, generation: Generation) -> None:
        """Shows its end where it stands, on behalf of the cell that has waited for it."""


def shell() -> Any:
    """The running IPython shell, or None; IPython is not imported for it."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel, where widgets make sense."""
    return getattr(shell(), "kernel", None) is not None


def presenter_here(*, direct: bool) -> LivePresenter | None:
    """The presenter that suits this process.

    Args:
        direct: Whether a browser may be able to reach the service without the kernel.
    """
    if in_kernel():
        return CellPresenter(direct=direct)
    return TerminalPresenter() if shell() is not None else None


class CellPresenter:
    """A live widget while it runs; afterwards text and HTML in its place.

    The widget leaves the output at the end, because a saved notebook that is opened again without its
    kernel shows "model not found" for a widget, and the text for HTML.
    """

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct
        self._display_id = uuid.uuid4().hex
        self._view: GenerationView | None = None
        self._cell: int | None = None

    def begin(self, generation: Generation) -> None:
        """Shows the widget in the running cell."""
        from IPython.display import display

        from uia_lab.notebook.widgets.generation_view import GenerationView

        self._view = GenerationView(generation, direct=self._direct)
        self._cell = shell().execution_count
        display(self._view._repr_mimebundle_(), raw=True, display_id=self._display_id)

    def end(self, generation: Generation) -> None:
        """Puts the still form in the widget's place, then closes the widget."""
        from IPython.display import display

        view, self._view = self._view, None
        if view is None:
            return
        view.flush()
        display(generation._repr_mimebundle_(), raw=True, display_id=self._display_id, update=True)
        view.close()

    def show(self, generation: Generation) -> None:
        """Shows it again in a later cell; the cell that made it shows it already."""
        from IPython.display import display

        if self._cell == shell().execution_count:
            return
        view = self._view
        display((view or generation)._repr_mimebundle_(), raw=True, display_id=self._display_id)

    def waited(self, generation: Generation) -> None:
        """Shows its end once more, for those who execute notebooks without a page.

        They hear only the cell that runs, and :meth:`end` of one that nobody waited for at first belongs to
        a cell that has ended.
        """
        from IPython.display import display

        if self._cell is not None and self._cell != shell().execution_count:
            bundle = generation._repr_mimebundle_()
            display(bundle, raw=True, display_id=self._display_id, update=True)


class TerminalPresenter:
    """Writes the text to standard output as it comes."""

    def __init__(self) -> None:
        self._written = 0
        self._shown = False

    def begin(self, generation: Generation) -> None:
        """Starts to follow it."""
        self._shown = True
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
