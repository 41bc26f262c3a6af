"""One attempt: a lease, the backend's events under deadlines, and how it ended."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec

from uia_lab.domain.backends import BackendStatus, BackendType
from uia_lab.domain.errors import BackendFailed, BackendTimeout, Cancelled, DeadlineExceeded, InferenceError
from uia_lab.domain.events import Attempted, Chunk, Event, Finished, Relayed, Started, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import AUDIO_TRANSCRIPTION, IMAGE_GENERATION
from uia_lab.manager.host import Host
from uia_lab.manager.running import Running
from uia_lab.manager.watch import Watch
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
_DOWN = (BackendStatus.OFFLINE, BackendStatus.UNHEALTHY)
# Of each count; sums of them are kept in columns of 63 bits, and read by clients that have doubles.
MOST_TOKENS = 2**53
_COUNTS = tuple(name for name in Usage.__struct_fields__ if name.endswith("_tokens"))
_AT_ONCE = frozenset({IMAGE_GENERATION, AUDIO_TRANSCRIPTION})


class Patience:
    """How long a backend may be silent.

    Before the first content by its kind. After it NEXT_CHUNK_S; where another backend could go on with the
    answer, GAPS times its usual gap between tokens, so that a frozen one costs little. An answer that comes
    at once may take all the time there is, as long as the probes of its backend pass.
    """

    def __init__(self, entry: Registered, request: InferenceRequest, left: float) -> None:
        self._entry = entry
        self._adapts = entry.capabilities.resume
        # An answer that is not streamed comes at once, however long it takes.
        self._streams = entry.capabilities.supports_streaming and request.task not in _AT_ONCE
        self._at_once = self._streams and not request.stream and _relays(entry, request)
        self.seconds = FIRST_CHUNK_S if self._streams else left
        if entry.type in (BackendType.GPU, BackendType.CLI):
            # Models load, and tools begin, before they say anything.
            self.seconds = max(self.seconds, LOCAL_FIRST_CHUNK_S)
        self._last: float | None = None
        self._gap: float | None = None

    @property
    def bears_more(self) -> bool:
        """Whether silence of that length is no reason to give up yet."""
        return self._at_once and self._entry.health.status not in _DOWN

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


def _relays(entry: Registered, request: InferenceRequest) -> bool:
    # Asked for by name: to check a protocol costs more than all else here.
    relays: Callable[[InferenceRequest], bool] | None = getattr(entry.instance, "relays", None)
    return request.wire is not None and relays is not None and relays(request)


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
    watch = run.watch()
    try:
        if not host.lifecycle.is_started(entry):
            await run.wait(lambda: host.lifecycle.started(entry), deadline - host.clock(), _late())
        source = aiter(entry.instance.infer(attempt.request))
        patience = Patience(entry, attempt.request, deadline - host.clock())
        left = 0.0

        def late() -> InferenceError | float:
            nonlocal left
            if left <= patience.seconds:
                return _late()
            if not patience.bears_more:
                return BackendTimeout(f"{name} sent nothing for {patience.seconds:.1f} s")
            left -= patience.seconds
            return min(left, patience.seconds)

        # Told with the first content: until then another backend may take over silently.
        started: Started | None = Started(name, attempt.number, attempt.told)
        while True:
            left = deadline - host.clock()
            if left <= 0:
                # A backend that always has the next piece ready would never be interrupted.
                raise _late()
            try:
                with watch.within(min(left, patience.seconds), late):
                    event = await anext(source)
            except StopAsyncIteration:
                raise BackendFailed(f"{name} ended its answer without saying that it was whole") from None
            if isinstance(event, Started):
                continue
            if started is not None:
                yield started
                started = None
            now = host.clock()
            if isinstance(event, (Chunk, Relayed)):
                pieces += event.count if isinstance(event, Relayed) else 1
                first_at = now if first_at is None else first_at
                patience.heard(now)
            elif isinstance(event, Finished):
                if event.last is not None and event.last.count:
                    pieces += event.last.count
                    # Of an answer that came at once nobody knows when its first token was there.
                    first_at = now if first_at is None and attempt.request.stream else first_at
                usage = _told(event.usage, run, pieces)
                ending = "ok"
                # The lease goes back before the caller sees the end: the next request may follow at once.
                told = Outcome("ok", None, usage, _since(attempt, first_at), whole=pieces <= 1)
                _finish(host, run, attempt, told)
                yield msgspec.structs.replace(event, usage=usage, attempts=tuple(run.attempts))
                return
            yield event
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
        run.unwatch(watch)
        try:
            await _close(source, watch)
        finally:
            watch.close()


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


async def _close(source: AsyncIterator[Event] | None, watch: Watch) -> None:
    """Ends the work outside; an adapter that does not let go is left behind after a deadline."""
    close = getattr(source, "aclose", None)
    if close is None:
        return
    try:
        with watch.within(CLOSE_S, _stuck):
            await close()
    except Exception:
        # How the attempt ended is known by now; what goes wrong in tidying up must not change it.
        log.debug("a backend did not close its answer", exc_info=True)


def _told(usage: Usage, run: Running, pieces: int) -> Usage:
    """The backend's figures, even zeros, as far as they can be counts; an estimate where it gave none."""
    counts = {name: getattr(usage, name) for name in _COUNTS}
    if min(counts.values()) < 0 or max(counts.values()) > MOST_TOKENS:
        usage = msgspec.structs.replace(
            usage, **{name: min(max(count, 0), MOST_TOKENS) for name, count in counts.items()}
        )
    return run.estimate(pieces) if usage.estimated and not usage.total_tokens else usage


def _since(attempt: Attempt, at: float | None) -> float | None:
    return None if at is None else at - attempt.started_at


def _stuck() -> BackendTimeout:
    return BackendTimeout(f"the backend did not let go of its answer within {CLOSE_S:g} s")


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's deadline passed")
