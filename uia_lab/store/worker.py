"""A thread with a connection of its own: nothing of SQLite happens anywhere else."""

import heapq
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from uia_lab.domain.errors import StoreError

T = TypeVar("T")
Step = Callable[[sqlite3.Connection], T]

log = logging.getLogger(__name__)

MOST_JOBS = 1000
CONNECT_S = 60.0
INTERRUPTED_S = 1.0


class Worker:
    """Runs steps on its connection, one after the other, in the order they were given or are due.

    Args:
        name: Name of the thread.
        connect: Makes the connection; called in the thread.
    """

    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._queue: queue.Queue[_Job | None] = queue.Queue(MOST_JOBS)
        self._later: list[_Job] = []
        self._last: list[Step[None]] = []
        self._ready: Future[sqlite3.Connection] = Future()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread and waits until it is connected.

        Raises:
            Exception: Whatever connecting raised.
        """
        self._thread.start()
        self._ready.result(CONNECT_S)

    def submit(self, step: Step[T], *, after: float = 0.0) -> Future[T]:
        """Has a step run in the thread; never waits.

        Args:
            step: Called with the connection; opens its transaction itself.
            after: Seconds until then. A step that is not due yet when the worker closes does not run.

        Raises:
            StoreError: It is closed, or far behind.
        """
        job = _Job(step, time.monotonic() + after if after > 0 else 0.0)
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            try:
                self._queue.put_nowait(job)
            except queue.Full:
                raise StoreError(f"the store is {MOST_JOBS} steps behind", retry_after=5) from None
        return job.future

    def before_close(self, step: Step[None]) -> None:
        """Has a step run as the last thing before the connection closes."""
        self._last.append(step)

    def close(self, timeout: float) -> None:
        """Runs what was submitted, then ends the thread; after the timeout it interrupts what runs.

        Args:
            timeout: Seconds.
        """
        with self._lock:
            first, self._closed = not self._closed, True
        if not self._thread.is_alive():
            return
        if first:
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                log.warning("the store is %d steps behind at its end", MOST_JOBS)
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.error(
                "%s did not end within %g s; what it has not written is lost", self._thread.name, timeout
            )
            if self._ready.done() and self._ready.exception() is None:
                self._ready.result().interrupt()
            self._thread.join(INTERRUPTED_S)

    def _run(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:  # noqa: BLE001 - raised again where start() waits
            self._ready.set_exception(error)
            return
        self._ready.set_result(connection)
        try:
            while (job := self._next()) is not None:
                job.run(connection)
            for step in self._last:
                try:
                    step(connection)
                except Exception:
                    log.exception("the last step of %s failed", self._thread.name)
            for job in self._later:
                job.future.cancel()
        finally:
            connection.close()

    def _next(self) -> "_Job | None":
        """The next step, when it is due; None at the end."""
        while True:
            wait = None if not self._later else self._later[0].due - time.monotonic()
            if wait is not None and wait <= 0:
                return heapq.heappop(self._later)
            try:
                job = self._queue.get(timeout=wait)
            except queue.Empty:
                continue
            if job is None or not job.due:
                return job
            heapq.heappush(self._later, job)


class _Job:
    """A step, when it is due (monotonic seconds; 0 at once), and what becomes of it."""

    __slots__ = ("due", "future", "step")

    def __init__(self, step: Step[Any], due: float) -> None:
        self.step = step
        self.due = due
        self.future: Future[Any] = Future()

    def __lt__(self, other: "_Job") -> bool:
        return self.due < other.due

    def run(self, connection: sqlite3.Connection) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.step(connection)
        except sqlite3.Error as error:
            failed = StoreError(f"the store failed: {error}")
            failed.__cause__ = error
            self.future.set_exception(failed)
        except BaseException as error:  # noqa: BLE001 - raised again where the future is awaited
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
