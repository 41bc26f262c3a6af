"""How far the load of a model is: a bar in a notebook, a line of text elsewhere."""

import sys
from typing import TYPE_CHECKING, Any, Protocol

from uia_lab.notebook.cell_place import CellPlace
from uia_lab.notebook.presenters import in_kernel, shell

if TYPE_CHECKING:
    from uia_lab.notebook.models import LoadedModel

WORDS = {
    "finding": "finding it",
    "fetching": "fetching",
    "waiting_for_room": "waiting for memory",
    "loading": "loading into memory",
}


class LoadProgress(Protocol):
    """Shows the steps of one load; the steps may come from another thread than the end."""

    def step(self, step: dict[str, Any]) -> None:
        """Shows a step ``{stage, done, total}``."""

    def ended(self, loaded: "LoadedModel") -> None:
        """Shows that it is loaded."""

    def failed(self, error: BaseException) -> None:
        """Shows that it is not."""


def progress_here(model_id: str) -> LoadProgress:
    """The progress that suits this process."""
    return CellProgress(model_id) if in_kernel() else TextProgress(model_id)


def words(step: dict[str, Any]) -> str:
    """A step in words."""
    stage = str(step.get("stage", ""))
    said = WORDS.get(stage, stage.replace("_", " "))
    total = step.get("total") or 0
    if stage == "fetching" and total > 1:
        said += f" {100 * step['done'] / total:3.0f} % ({step['done'] / 1e6:.0f} of {total / 1e6:.0f} MB)"
    return said


class CellProgress:
    """A bar below the running cell; afterwards a line of text in its place."""

    def __init__(self, model_id: str) -> None:
        from uia_lab.notebook.widgets.load_bar import LoadBar

        self._cell = shell().execution_count
        self._bar = LoadBar(model_id)
        self._place = CellPlace(self._bar._repr_mimebundle_())

    def step(self, step: dict[str, Any]) -> None:
        """Moves the bar."""
        self._bar.take(step)

    def ended(self, loaded: "LoadedModel") -> None:
        """Says what was loaded."""
        loaded.cell = self._cell
        self._leave(loaded._repr_mimebundle_())

    def failed(self, error: BaseException) -> None:
        """Says why it was not."""
        self._leave(self._bar.still(str(error) or type(error).__name__))

    def _leave(self, bundle: dict[str, str]) -> None:
        self._place.put(bundle)
        self._bar.close()


class TextProgress:
    """One line that is written anew in a terminal; one line a stage elsewhere."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._last = ""
        self._stage = ""

    def step(self, step: dict[str, Any]) -> None:
        """Writes what has changed."""
        line = f"{self._model_id}: {words(step)}"
        if sys.stderr.isatty():
            if line != self._last:
                sys.stderr.write("\r" + line.ljust(len(self._last)))
        elif step.get("stage") != self._stage:
            sys.stderr.write(line + "\n")
        self._last, self._stage = line, str(step.get("stage"))
        sys.stderr.flush()

    def ended(self, loaded: "LoadedModel") -> None:
        """Writes what was loaded."""
        self._end(repr(loaded))

    def failed(self, error: BaseException) -> None:
        """Ends the line; whoever asked gets the error itself."""
        self._end(f"{self._model_id}: not loaded ({type(error).__name__})")

    def _end(self, line: str) -> None:
        start = "\r" if sys.stderr.isatty() else ""
        sys.stderr.write(start + line.ljust(len(self._last)) + "\n")
        sys.stderr.flush()
