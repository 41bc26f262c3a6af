"""One attempt: a lease, the backend's events under deadlines, and how it ended."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BackendFailed, BackendTimeout, Cancelled, DeadlineExceeded, InferenceError
from uia_lab.domain.events import Attempted, Chunk, Event, Finished, Started, Usage
from uia_lab.domain.tasks import AUDIO_TRANSCRIPTION, IMAGE_GENERATION
from uia_lab.manager.host import Host
from uia_lab.manager.running import Running
from uia_lab.routing.figures import Ending
from uia_lab.routing.registry import Registered
from uia_lab.routing.turns import Attempt, Outcome

log = logging.getLogger(__name__)

FIRST_CHUNK_S = 30.0
LOCAL_FIRST_CHUNK_S = 300.0
NEXT_CHUNK_S = 60.0
NEXT_CHUNK_LEAST_S = 1.0
GAPS = 8.0
GAP_SHARE = 0.2
CLOSE_S = 5.0
_AT_ONCE = frozenset({IMAGE_GENERATION, AUDIO_TRANSCRIPTION})


class Patience:
    """How long a backend may be silent.

    Before the first content by its kind. After it NEXT_CHUNK_S; where another backend could go on with the
    answer, GAPS times its usual gap between tokens, so that a frozen one costs little.
    """

    def __init__(self, entry: Registered, task: str, left: float) -> None:
        self._streams = entry.capabilities.supports_streaming and task not in _AT_ONCE
        self._adapts = entry.capabilities.resume
        # An answer that is not streamed comes at once, however long it takes.
        self.seconds = FIRST_CHUNK_S if self._streams else left
        if entry.type is BackendType.GPU:
            self.seconds = max(self.seconds, LOCAL_FIRST_CHUNK_S)
        self._last: float | None = None
        self._gap: float | None = None

    def heard(self, now: float) -> None:
        """A piece came."""
        if not self._streams:
            return
        self.seconds = NEXT_CHUNK_S
        if self._adapts and self._last is not None:
            gap = now - self._last
            self._gap = gap if self._gap is None else self._gap + GAP_SHARE * (gap - self._gap)
            self.seconds = min(NEXT_CHUNK_S, max(NEXT_CHUNK_LEAST_S, GAPS * self._gap))
        self._last = now


async def serve(host: Host, run: Running, attempt: Attempt, deadline: float) -> AsyncGenerator[Event, None]:
    """One backend's events; the lease is finished on every way out.

    Raises:
        InferenceError: How the attempt failed.
    """
    entry = attempt.backend
    name = entry.backend_id
    first_at: float | None = None
    ending: Ending = "cancelled"
    error: InferenceError | None = None
    usage = Usage()
    pieces = 0
    source: AsyncIterator[Event] | None = None
    try:
        await run.wait(lambda: host.lifecycle.started(entry), deadline - host.clock(), _late())
        source = aiter(entry.instance.infer(attempt.request))
        patience = Patience(entry, attempt.request.task, deadline - host.clock())
        # Told with the first content: until then another backend may take over silently.
        started: Started | None = Started(name, attempt.number, attempt.decision.to_dict())
        while True:
            left = deadline - host.clock()
            if left <= 0:
                # A backend that always has the next piece ready would never be interrupted.
                raise _late()
            silent = BackendTimeout(f"{name} sent nothing for {patience.seconds:.1f} s")
            late = _late() if left <= patience.seconds else silent
            try:
                event = await run.wait(lambda: anext(source), min(left, patience.seconds), late)
            except StopAsyncIteration:
                raise BackendFailed(f"{name} ended its answer without saying that it was whole") from None
            if started is not None and not isinstance(event, Started):
                yield started
                started = None
            if isinstance(event, Chunk):
                now = host.clock()
                if first_at is None:
                    first_at = now
                patience.heard(now)
                pieces += 1
                yield event
            elif isinstance(event, Finished):
                usage = _told(event.usage, run, pieces)
                ending = "ok"
                # The lease goes back before the caller sees the end: the next request may follow at once.
                _finish(host, run, attempt, Outcome("ok", None, usage, _since(attempt, first_at)))
                yield msgspec.structs.replace(event, usage=usage, attempts=tuple(run.attempts))
                return
    except InferenceError as caught:
        error = caught
        ending = ending_of(caught)
        raise
    except Exception as caught:
        # Whatever an adapter or a user's function raises is that backend's failure.
        error = BackendFailed(f"{name} raised {type(caught).__name__}: {caught}")
        ending = "failed"
        raise error from caught
    finally:
        _finish(host, run, attempt, Outcome(ending, error, usage, _since(attempt, first_at)))
        await _close(source)


def ending_of(error: InferenceError) -> Ending:
    """``rejected`` is what was refused cleanly, ``failed`` what went wrong."""
    if isinstance(error, Cancelled):
        return "cancelled"
    return "rejected" if 400 <= error.http_status < 500 else "failed"


def _finish(host: Host, run: Running, attempt: Attempt, outcome: Outcome) -> None:
    if attempt.ended:
        return
    now = host.clock()
    error = outcome.error
    run.attempts.append(
        Attempted(
            attempt.backend.backend_id,
            outcome.ending,
            (now - attempt.started_at) * 1000,
            error.code if error else None,
            error.message if error else None,
        )
    )
    host.settle(host.router.finish(attempt, outcome, now))


async def _close(source: AsyncIterator[Event] | None) -> None:
    """Ends the work outside; an adapter that does not let go is left behind after a deadline."""
    close = getattr(source, "aclose", None)
    if close is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await close()
    except Exception:
        # How the attempt ended is known by now; what goes wrong in tidying up must not change it.
        log.debug("a backend did not close its answer", exc_info=True)


def _told(usage: Usage, run: Running, pieces: int) -> Usage:
    """The backend's figures, even zeros; an estimate where it gave none."""
    return run.estimate(pieces) if usage.estimated and not usage.total_tokens else usage


def _since(attempt: Attempt, at: float | None) -> float | None:
    return None if at is None else at - attempt.started_at


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's deadline passed")
