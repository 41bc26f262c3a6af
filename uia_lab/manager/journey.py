"""The journey of one request: queue, lease, attempts, failover, resume, outcome."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from uia_lab.access.limits import Admission
from uia_lab.domain.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    InferenceError,
    LoopDetected,
    StreamInterrupted,
)
from uia_lab.domain.events import Chunk, Event, Finished, Relayed, Started, Switched, Usage
from uia_lab.domain.requests import InferenceRequest, Resumed
from uia_lab.manager.attempt import ending_of, serve
from uia_lab.manager.hedge import may_hedge, race
from uia_lab.manager.host import Host
from uia_lab.manager.running import Running
from uia_lab.routing.figures import Ending
from uia_lab.routing.queues import Ticket
from uia_lab.routing.retry import pause
from uia_lab.routing.strategies import Tried
from uia_lab.routing.turns import Attempt, Granted, Queued, Refused

log = logging.getLogger(__name__)

MOST_HOPS = 4


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
    run = Running(request, host.clock(), host.alarm)
    host.running[request.id] = run
    host.totals.begin()
    ending: Ending = "cancelled"
    error: InferenceError | None = None
    admission: Admission | None = None
    try:
        if host.instance_id in request.via or len(request.via) > MOST_HOPS:
            passed = " > ".join(request.via)
            raise LoopDetected(
                f"the request has come by {passed} to {host.instance_id}: a backend here leads back, or the "
                f"chain is longer than {MOST_HOPS}; remove that backend or name another in the request"
            )
        if host.admit is not None:
            admission = host.admit(request)
            run.request = admission.request
        events = _attempts(host, run)
        try:
            async for event in events:
                if isinstance(event, Finished):
                    ending = "ok"
                yield event
        finally:
            await events.aclose()
    except InferenceError as caught:
        error = caught
        ending = ending_of(caught) if run.attempts or isinstance(caught, Cancelled) else "rejected"
        raise
    except Exception:
        ending = "failed"
        raise
    finally:
        del host.running[request.id]
        host.totals.end(ending)
        run.left = run.backend_id is not None and (
            ending == "cancelled" or isinstance(error, DeadlineExceeded)
        )
        if admission is not None:
            admission.finish(run.charged)
        _remember(host, run, ending, error)
        host.settle([])


async def _attempts(host: Host, run: Running) -> AsyncGenerator[Event, None]:
    """The events of as many attempts as it takes, numbered as one answer."""
    request = run.request
    # A caller may want less time than the house gives, not more.
    deadline = run.began_at + min(request.routing.deadline_s or math.inf, host.request_timeout)
    limit = request.routing.max_attempts or host.max_attempts
    tried: Tried = frozenset()
    last: InferenceError | None = None
    broken: str | None = None
    for number in range(1, limit + 1):
        if last is not None:
            if not host.router.retries.take(host.clock()):
                break
            late = DeadlineExceeded("the deadline passed before another backend could be tried")
            seconds = pause(number, host.rng)
            await run.wait(lambda: asyncio.sleep(seconds), deadline - host.clock(), late)  # noqa: B023
        attempt = await _lease(host, run, request, number, tried, deadline, last)
        tried |= {_trace(attempt)}
        events: AsyncGenerator[Event, None] | None = None
        try:
            if number < limit and may_hedge(request, attempt):
                second = _Second(host, request, number, tried)
                after = request.routing.hedge_after_s or 0.0
                try:
                    attempt, collected = await race(host, run, attempt, deadline, after, second)
                finally:
                    tried |= second.tried
                events = _replay(collected)
            else:
                events = serve(host, run, attempt, deadline)
            run.take(attempt)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Started) and broken is not None:
                        reason = last.message if last is not None else ""
                        yield Switched(broken, attempt.backend.backend_id, reason, run.chunks)
                    elif isinstance(event, Chunk):
                        yield run.deliver(event, host.clock())
                    elif isinstance(event, Relayed):
                        yield run.relay(event, host.clock())
                    elif isinstance(event, Finished):
                        whole = _whole(event, request.resumed)
                        run.usage = whole.usage
                        if whole.last is not None:
                            run.relay(whole.last, host.clock())
                        yield whole
                    else:
                        yield event
            return
        except InferenceError as error:
            if isinstance(error, (Cancelled, DeadlineExceeded)):
                raise
            last = error
            if run.chunks:
                resumed = _resumable(run, request, attempt)
                if resumed is None:
                    break
                request = msgspec.structs.replace(request, resumed=resumed)
                broken = attempt.backend.backend_id
            elif not error.retryable or attempt.backend.capabilities.side_effects:
                raise
    assert last is not None
    raise _given_up(run, last)


async def _lease(
    host: Host,
    run: Running,
    request: InferenceRequest,
    number: int,
    tried: Tried,
    deadline: float,
    last: InferenceError | None,
) -> Attempt:
    """A backend for the next attempt; where there is none, what the attempts before it ended with."""
    now = host.clock()
    due = host.router.next_tick
    if due is not None and due <= now:
        # The timer is late: those in line are served before whoever comes.
        host.settle(host.router.tick(now))
    answer = host.router.begin(request, now, number=number, excluded=tried)
    match answer:
        case Granted(attempt=attempt):
            return attempt
        case Refused(error=error):
            if last is None:
                raise error
            raise _given_up(run, last)
        case Queued(ticket=ticket):
            try:
                return await _queued(host, run, ticket, deadline)
            except (Cancelled, DeadlineExceeded):
                raise
            except InferenceError:
                if last is None:
                    raise
                raise _given_up(run, last) from None


async def _queued(host: Host, run: Running, ticket: Ticket, deadline: float) -> Attempt:
    future: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
    host.waiting[ticket] = future
    host.settle([])
    since = host.clock()
    try:
        late = DeadlineExceeded("the deadline passed while the request waited for a free backend")
        granted: Attempt = await run.wait(lambda: future, deadline - since, late)
        return granted
    except BaseException:
        # The backend may have been handed over in the very moment the caller left.
        if future.done() and not future.cancelled() and future.exception() is None:
            host.settle(host.router.give_back(future.result(), host.clock()))
        raise
    finally:
        run.queued_s += host.clock() - since
        host.waiting.pop(ticket, None)
        host.router.leave(ticket)


def _trace(attempt: Attempt) -> tuple[str, str | None]:
    return attempt.backend.backend_id, attempt.request.model


class _Second:
    """Gives an attempt at another backend than those tried, if one is free and the budget allows it."""

    def __init__(self, host: Host, request: InferenceRequest, number: int, tried: Tried) -> None:
        self._host, self._request, self._number = host, request, number
        self.tried = tried

    def __call__(self) -> Attempt | None:
        host, now = self._host, self._host.clock()
        if not host.router.retries.take(now):
            return None
        passed_over: Tried = frozenset()
        while True:
            answer = host.router.begin(
                self._request, now, number=self._number + 1, excluded=self.tried | passed_over
            )
            if isinstance(answer, Queued):
                host.router.leave(answer.ticket)
            if not isinstance(answer, Granted):
                return None
            attempt = answer.attempt
            if may_hedge(self._request, attempt):
                self.tried |= {_trace(attempt)}
                return attempt
            passed_over |= {_trace(attempt)}
            host.settle(host.router.give_back(attempt, now))


async def _replay(events: list[Event]) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


def _resumable(run: Running, request: InferenceRequest, attempt: Attempt) -> Resumed | None:
    """What another backend needs to go on exactly where this one broke off; None where nobody can."""
    capabilities = attempt.backend.capabilities
    digest = capabilities.model_digest.get(attempt.decision.model or "")
    several = request.parameters.get("n") not in (None, 1)
    if not (request.routing.resume and capabilities.resume and digest and run.plain) or several:
        return None
    return Resumed(run.text, run.chunks, digest)


def _whole(event: Finished, resumed: Resumed | None) -> Finished:
    """The end of the whole answer: all of its text, the prompt counted once and both completions."""
    if resumed is None:
        return event
    usage = Usage(
        max(0, event.usage.input_tokens - resumed.tokens),
        resumed.tokens + event.usage.output_tokens,
        estimated=True,
    )
    result = resumed.text + event.result if isinstance(event.result, str) else event.result
    return msgspec.structs.replace(event, result=result, usage=usage)


def _given_up(run: Running, last: InferenceError) -> InferenceError:
    """The error of a request whose last attempt failed and that has nowhere else to go."""
    if not run.chunks:
        return last
    error = StreamInterrupted(f"{run.backend_id} broke off after {run.chunks} chunks: {last.message}")
    error.__cause__ = last
    return error


def _remember(host: Host, run: Running, ending: Ending, error: InferenceError | None) -> None:
    if host.on_record is None:
        return
    try:
        host.on_record(
            run.record(host.instance_id, ending, error, host.clock(), with_prompts=host.log_prompts)
        )
    except Exception:
        # A log that fails must not cost anyone an answer.
        log.exception("request %s could not be recorded", run.request.id)
