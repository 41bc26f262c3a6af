"""How far a batch is: a bar in a notebook, lines of text elsewhere."""

import contextvars
import sys
import time
import uuid
from collections.abc import Callable
from html import escape
from typing import Protocol

from uia_lab.notebook.batch import Batch
from uia_lab.notebook.presenters import in_kernel

EVERY_S = 0.25


class BatchProgress(Protocol):
    """Shows how far a batch is."""

    def changed(self, batch: Batch) -> None:
        """Something has changed; shown now and then."""

    def ended(self, batch: Batch) -> None:
        """It has ended; shown in any case."""


def progress_here(batch: Batch) -> BatchProgress:
    """The progress that suits this process; it begins to show at once."""
    return CellProgress(batch) if in_kernel() else TextProgress()


class CellProgress:
    """A bar in the cell, written anew at most once in EVERY_S; the last one stays in the notebook.

    Args:
        batch: The batch.
        clock: Monotonic seconds.
    """

    def __init__(self, batch: Batch, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._display_id = uuid.uuid4().hex
        # What is shown later still belongs to this cell.
        self._here = contextvars.copy_context()
        self._shown_at = clock()
        self._show(batch, update=False)

    def changed(self, batch: Batch) -> None:
        """Shows it, if it is time."""
        if self._clock() - self._shown_at >= EVERY_S:
            self._shown_at = self._clock()
            self._here.run(self._show, batch, update=True)

    def ended(self, batch: Batch) -> None:
        """Shows the end."""
        self._here.run(self._show, batch, update=True)

    def _show(self, batch: Batch, *, update: bool) -> None:
        from IPython.display import display

        bundle = {"text/plain": batch.summary(), "text/html": bar(batch)}
        display(bundle, raw=True, display_id=self._display_id, update=update)


class TextProgress:
    """A line in a terminal that is written over; one line at the end elsewhere.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown_at = clock()

    def changed(self, batch: Batch) -> None:
        """Shows it, if it is time and somebody can see it."""
        if sys.stderr.isatty() and self._clock() - self._shown_at >= EVERY_S:
            self._shown_at = self._clock()
            sys.stderr.write(f"\r\x1b[K{batch.summary()}")
            sys.stderr.flush()

    def ended(self, batch: Batch) -> None:
        """Writes the end."""
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}{batch.summary()}\n")
        sys.stderr.flush()


def bar(batch: Batch) -> str:
    """A bar and a line of words, readable without any style sheet."""
    counts = batch.counts
    past = counts["done"] + counts["failed"] + counts["stopped"]
    font = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px"
    return (
        f'<div data-testid="uia-batch" style="{font};font-variant-numeric:tabular-nums">'
        f'<progress max="{len(batch)}" value="{past}" aria-label="progress of the batch" '
        f'style="width:240px;vertical-align:middle"></progress> {escape(batch.summary())}</div>'
    )
