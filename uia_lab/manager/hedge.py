"""A second attempt beside a slow first one, for answers that are not streamed (Dean and Barroso 2013)."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from uia_lab.domain.events import Event
from uia_lab.domain.requests import InferenceRequest
from uia_lab.manager.attempt import serve
from uia_lab.manager.host import Host
from uia_lab.manager.running import Running
from uia_lab.routing.turns import Attempt, Outcome


def may_hedge(request: InferenceRequest, attempt: Attempt) -> bool:
    """Whether asking twice changes nothing but the wait: nothing is streamed, nothing costs or happens."""
    entry = attempt.backend
    return (
        request.routing.hedge_after_s is not None
        and not request.stream
        and not entry.external
        and not entry.capabilities.side_effects
    )


async def race(
    host: Host,
    run: Running,
    first: Attempt,
    deadline: float,
    after: float,
    second: Callable[[], Attempt | None],
) -> tuple[Attempt, list[Event]]:
    """The events of whichever attempt ends well first; the other one is cancelled.

    Args:
        host: The manager.
        run: The request.
        first: The attempt that begins.
        deadline: On the manager's clock.
        after: Seconds after which the second one is asked for.
        second: Gives the other attempt, if somebody is free for it.

    Raises:
        InferenceError: Both failed; the error of the last.
    """
    attempts = [first]
    racing = {asyncio.create_task(_collect(host, run, first, deadline))}
    try:
        done, _ = await asyncio.wait(racing, timeout=after)
        if not done and (other := second()) is not None:
            attempts.append(other)
            racing.add(asyncio.create_task(_collect(host, run, other, deadline)))
        while True:
            done, racing = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
            won = [task for task in done if task.exception() is None]
            if won or not racing:
                return (won or list(done))[0].result()
    finally:
        for task in racing:
            task.cancel()
        await asyncio.gather(*racing, return_exceptions=True)
        for attempt in attempts:
            # A task that was cancelled before its first step has not given its lease back.
            host.settle(host.router.finish(attempt, Outcome("cancelled"), host.clock()))


async def _collect(
    host: Host, run: Running, attempt: Attempt, deadline: float
) -> tuple[Attempt, list[Event]]:
    async with aclosing(serve(host, run, attempt, deadline)) as events:
        return attempt, [event async for event in events]
