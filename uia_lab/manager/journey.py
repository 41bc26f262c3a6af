"""The journey of one request: queue, lease, attempt, failover, outcome."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    InferenceError,
    StreamInterrupted,
)
from uia_lab.domain.events import Attempted, Chunk, Event, Finished, Started, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.manager.lifecycle import Lifecycle
from uia_lab.routing.queues import Ticket
from uia_lab.routing.router import Attempt, Granted, Outcome, Queued, Refused, Router, Turn
from uia_lab.routing.stats import Counters, Ending

FIRST_CHUNK_S = 30.0
LOCAL_FIRST_CHUNK_S = 300.0
NEXT_CHUNK_S = 60.0
CLOSE_S = 5.0


class Host(Protocol):
    """What a journey needs of the manager."""

    instance_id: str
    router: Router
    lifecycle: Lifecycle
    totals: Counters
    clock: Callable[[], float]
    waiting: dict[Ticket, asyncio.Future[Attempt]]
    running: "dict[str, Running]"
    request_timeout: float
    max_attempts: int

    def settle(self, turns: list[Turn]) -> None:
        """Hands backends to those who waited for them."""


@dataclass(slots=True, eq=False)
class Running:
    """A request under way, as others may see it and end it."""

    request: InferenceRequest
    began_at: float
    backend_id: str | None = None
    chunks: int = 0
    cancelled: bool = False
    attempts: list[Attempted] = field(default_factory=list)
    _scope: asyncio.Timeout | None = None

    def cancel(self) -> None:
        """Ends the wait that is under way; the stream then raises Cancelled. On the loop only."""
        self.cancelled = True
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def wait(self, awaitable: Any, seconds: float, late: InferenceError) -> Any:
        """Waits with a deadline that ``cancel`` can bring forward.

        Raises:
            Cancelled: Somebody cancelled the request.
            InferenceError: ``late``, when the time is over.
        """
        try:
            async with asyncio.timeout(0 if self.cancelled else seconds) as self._scope:
                return await awaitable
        except TimeoutError as error:
            scope = self._scope
            if scope is None or not scope.expired():
                # The backend's own TimeoutError, not our deadline.
                raise BackendTimeout(f"the backend timed out: {error}") from error
            if self.cancelled:
                raise Cancelled("the request was cancelled") from None
            raise late from None
        finally:
            self._scope = None


async def travel(host: Host, request: InferenceRequest) -> AsyncGenerator[Event, None]:
    """The events of the answer; every way out gives the lease back and counts one outcome.

    Args:
        host: The manager.
        request: The request.

    Raises:
        InferenceError: How the request failed.
    """
    if request.id in host.running:
        raise BadRequest(f"request id {request.id!r} is in use by a running request", param="request_id")
    run = Running(request, host.clock())
    host.running[request.id] = run
    host.totals.begin()
    ending: Ending = "cancelled"
    try:
        async with aclosing(_attempts(host, run)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    ending = "ok"
                yield event
    except InferenceError as error:
        ending = _ending(error, reached=bool(run.attempts))
        raise
    except Exception:
        ending = "failed"
        raise
    finally:
        del host.running[request.id]
        host.totals.end(ending)
        host.settle([])


async def _attempts(host: Host, run: Running) -> AsyncGenerator[Event, None]:
    request = run.request
    deadline = run.began_at + (request.routing.deadline_s or host.request_timeout)
    limit = request.routing.max_attempts or host.max_attempts
    tried: frozenset[str] = frozenset()
    last: InferenceError | None = None
    for number in range(1, limit + 1):
        attempt = await _lease(host, run, number, tried, deadline, last)
        run.backend_id = attempt.backend.backend_id
        tried |= {attempt.backend.backend_id}
        delivered = False
        try:
            async with aclosing(_attempt(host, run, attempt, deadline)) as events:
                async for event in events:
                    delivered = delivered or isinstance(event, Chunk)
                    yield event
        except InferenceError as error:
            if delivered:
                if isinstance(error, (Cancelled, DeadlineExceeded)):
                    raise
                raise StreamInterrupted(
                    f"{attempt.backend.backend_id} broke off after {run.chunks} chunks: {error.message}"
                ) from error
            if not error.retryable or attempt.backend.capabilities.side_effects:
                raise
            last = error
        else:
            return
    assert last is not None
    raise last


async def _lease(
    host: Host,
    run: Running,
    number: int,
    tried: frozenset[str],
    deadline: float,
    last: InferenceError | None,
) -> Attempt:
    answer = host.router.begin(run.request, host.clock(), number=number, excluded=tried)
    match answer:
        case Granted(attempt=attempt):
            return attempt
        case Refused(error=error):
            raise last or error
        case Queued(ticket=ticket):
            return await _queued(host, run, ticket, deadline)


async def _queued(host: Host, run: Running, ticket: Ticket, deadline: float) -> Attempt:
    future: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
    host.waiting[ticket] = future
    host.settle([])
    try:
        late = DeadlineExceeded("the deadline passed while the request waited for a free backend")
        granted: Attempt = await run.wait(future, max(0.0, deadline - host.clock()), late)
        return granted
    except BaseException:
        # The backend may have been handed over in the very moment the caller left.
        if future.done() and not future.cancelled() and future.exception() is None:
            host.settle(host.router.finish(future.result(), Outcome("cancelled"), host.clock()))
        raise
    finally:
        host.waiting.pop(ticket, None)
        host.router.leave(ticket)


async def _attempt(
    host: Host, run: Running, attempt: Attempt, deadline: float
) -> AsyncGenerator[Event, None]:
    """One backend's events; the lease is finished on every way out."""
    entry = attempt.backend
    name = entry.backend_id
    first_at: float | None = None
    ending: Ending = "cancelled"
    error: InferenceError | None = None
    usage = Usage()
    source: AsyncIterator[Event] | None = None
    try:
        await run.wait(host.lifecycle.started(entry), deadline - host.clock(), _late())
        source = aiter(entry.instance.infer(attempt.request))
        # The answer of a backend that does not stream comes at once, however long it takes.
        patience = FIRST_CHUNK_S if entry.capabilities.supports_streaming else deadline - host.clock()
        if entry.type is BackendType.GPU:
            patience = max(patience, LOCAL_FIRST_CHUNK_S)
        # Told with the first content: until then another backend may take over silently.
        started: Started | None = Started(name, attempt.number, attempt.decision.to_dict())
        while True:
            if run.cancelled:
                raise Cancelled("the request was cancelled")
            left = deadline - host.clock()
            silent = BackendTimeout(f"{name} sent nothing for {patience:.0f} s")
            late = _late() if left <= patience else silent
            try:
                event = await run.wait(anext(source), max(0.0, min(left, patience)), late)
            except StopAsyncIteration:
                raise BackendFailed(f"{name} ended its answer without saying that it was whole") from None
            if started is not None and not isinstance(event, Started):
                yield started
                started = None
            if isinstance(event, Chunk):
                if first_at is None:
                    first_at = host.clock()
                if entry.capabilities.supports_streaming:
                    patience = NEXT_CHUNK_S
                run.chunks += 1
                yield event
            elif isinstance(event, Finished):
                usage = event.usage
                ending = "ok"
                trail = (*run.attempts, _trail(attempt, "ok", None, host.clock()))
                # The lease goes back before the caller sees the end: the next request may follow at once.
                _finish(host, run, attempt, Outcome("ok", None, usage, _since(attempt, first_at)))
                yield Finished(event.result, usage, event.finish_reason, tuple(trail), event.finish_reasons)
                return
    except InferenceError as caught:
        error = caught
        ending = _ending(caught, reached=True)
        raise
    except Exception as caught:
        # Whatever an adapter or a user's function raises is that backend's failure.
        error = BackendFailed(f"{name} raised {type(caught).__name__}: {caught}")
        ending = "failed"
        raise error from caught
    finally:
        _finish(host, run, attempt, Outcome(ending, error, usage, _since(attempt, first_at)))
        await _close(source)


def _finish(host: Host, run: Running, attempt: Attempt, outcome: Outcome) -> None:
    if attempt.ended:
        return
    now = host.clock()
    run.attempts.append(_trail(attempt, outcome.ending, outcome.error, now))
    host.settle(host.router.finish(attempt, outcome, now))


async def _close(source: AsyncIterator[Event] | None) -> None:
    """Ends the work outside; an adapter that does not let go is left behind after a deadline."""
    close = getattr(source, "aclose", None)
    if close is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await close()
    except (TimeoutError, RuntimeError):
        return


def _trail(attempt: Attempt, ending: Ending, error: InferenceError | None, now: float) -> Attempted:
    return Attempted(
        attempt.backend.backend_id,
        ending,
        (now - attempt.started_at) * 1000,
        error.code if error else None,
        error.message if error else None,
    )


def _since(attempt: Attempt, at: float | None) -> float | None:
    return None if at is None else at - attempt.started_at


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's deadline passed")


def _ending(error: InferenceError, *, reached: bool) -> Ending:
    """``rejected`` is what never got, or was refused, a place; ``failed`` what went wrong."""
    if isinstance(error, Cancelled):
        return "cancelled"
    if not reached or 400 <= error.http_status < 500:
        return "rejected"
    return "failed"
