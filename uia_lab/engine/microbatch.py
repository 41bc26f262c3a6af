"""One thread that computes whatever is queued, in batches of inputs near in length."""

import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from uia_lab.domain.errors import QueueFull
from uia_lab.engine.frames import Emit, Failed

log = logging.getLogger(__name__)

MAX_WAITING = 16384

In = TypeVar("In")
Out = TypeVar("Out")


class _Job(Generic[In, Out]):
    """A request: its inputs, and the results computed so far."""

    def __init__(
        self,
        rid: str,
        items: Sequence[In],
        lengths: Sequence[int],
        key: Hashable,
        finish: Callable[[list[Out]], None],
    ) -> None:
        self.rid = rid
        self.items = items
        self.lengths = lengths
        self.key = key
        self.finish = finish
        self.results: list[Any] = [None] * len(items)
        self.left = len(items)
        self.cancelled = False


class MicroBatcher(Generic[In, Out]):
    """Batches over all requests. There is no timer, so a lone request never waits for company.

    Args:
        name: Name of the thread.
        compute: Results of a batch whose inputs share a key, called with the inputs and the key.
        budget: Tokens (or what lengths count) of a batch, padding included.
        emit: Takes the frames of failures.
        most: Inputs of a batch.
    """

    def __init__(
        self,
        name: str,
        compute: Callable[[list[In], Any], Sequence[Out]],
        budget: int,
        emit: Emit,
        most: int = 256,
    ) -> None:
        self._compute = compute
        self._budget = budget
        self._most = most
        self._emit = emit
        self._jobs: list[_Job[In, Out]] = []
        # Inputs not computed yet, those of the oldest request first: (job, place).
        self._waiting: list[tuple[_Job[In, Out], int]] = []
        self._wake = threading.Condition()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def add(
        self,
        rid: str,
        items: Sequence[In],
        lengths: Sequence[int],
        finish: Callable[[list[Out]], None],
        key: Hashable = None,
    ) -> None:
        """Queues a request.

        Args:
            rid: Its id.
            items: Its inputs, at least one.
            lengths: What each costs, in tokens.
            finish: Called with all results, in the order of the inputs.
            key: Only inputs of one key are computed together.

        Raises:
            QueueFull: Too much is waiting.
        """
        job = _Job(rid, items, lengths, key, finish)
        with self._wake:
            if len(self._waiting) + job.left > MAX_WAITING:
                raise QueueFull(f"{len(self._waiting)} inputs are waiting for this model already")
            self._jobs.append(job)
            self._waiting.extend((job, place) for place in range(job.left))
            self._wake.notify()

    def cancel(self, rid: str) -> None:
        """Drops what of a request is not computed yet."""
        with self._wake:
            for job in self._jobs:
                if job.rid == rid:
                    self._drop(job)
                    break

    def stats(self) -> dict[str, float]:
        """Requests here, and inputs not computed yet."""
        with self._wake:
            return {"running": float(len(self._jobs)), "waiting": float(len(self._waiting))}

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    self._wake.wait()
                batch = self._take()
            self._run(batch)

    def _run(self, batch: list[tuple[_Job[In, Out], int]]) -> None:
        try:
            results = self._compute([job.items[place] for job, place in batch], batch[0][0].key)
        except Exception as error:
            if len(batch) > 1:
                # Only the input that cannot be computed fails, not those that were with it.
                for item in batch:
                    if not item[0].cancelled:
                        self._run([item])
                return
            log.exception("an input could not be computed")
            self._fail(batch[0][0], f"the model failed: {type(error).__name__}: {error}")
            return
        for (job, place), result in zip(batch, results, strict=True):
            job.results[place] = result
            job.left -= 1
            if not job.left:
                self._finish(job)

    def _take(self) -> list[tuple[_Job[In, Out], int]]:
        """A batch of inputs near in length: padding is wasted work. Called with the lock held.

        It starts with the longest input of the oldest request, so none is left waiting for ever.
        """
        oldest = self._waiting[0][0]

        def length(item: tuple[_Job[In, Out], int]) -> int:
            return item[0].lengths[item[1]]

        longest = max(length(item) for item in self._waiting if item[0] is oldest)
        # A stable sort keeps the oldest request's inputs first among those of one length.
        fitting = sorted(
            (item for item in self._waiting if item[0].key == oldest.key and length(item) <= longest),
            key=length,
            reverse=True,
        )
        count = min(self._most, max(1, self._budget // max(1, longest)))
        batch = list(itertools.islice(fitting, count))
        taken = {(id(job), place) for job, place in batch}
        self._waiting = [item for item in self._waiting if (id(item[0]), item[1]) not in taken]
        return batch

    def _finish(self, job: _Job[In, Out]) -> None:
        with self._wake:
            if job.cancelled:
                return
            self._jobs.remove(job)
        try:
            job.finish(job.results)
        except Exception as error:
            log.exception("a result could not be sent")
            self._emit(Failed(job.rid, "backend_failed", f"{type(error).__name__}: {error}"))

    def _fail(self, job: _Job[In, Out], message: str) -> None:
        with self._wake:
            if job.cancelled:
                return
            self._drop(job)
        self._emit(Failed(job.rid, "backend_failed", message))

    def _drop(self, job: _Job[In, Out]) -> None:
        job.cancelled = True
        self._jobs.remove(job)
        self._waiting = [item for item in self._waiting if item[0] is not job]
