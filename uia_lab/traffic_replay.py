"""What another strategy would have made of the traffic in the log."""

import asyncio
import threading
import time
from collections import Counter
from typing import Any

from uia_lab.domain.errors import BadRequest, DeadlineExceeded, QueueFull
from uia_lab.domain.records import RequestRecord
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.routing.past import Experience, Past, past_of
from uia_lab.routing.replay import House, Replay, Stopped
from uia_lab.routing.strategies import make_strategy
from uia_lab.routing.tally import happened
from uia_lab.store.request_log import RequestLog

MOST = 20_000
USUAL = 5_000
LONGEST_S = 30.0
# A simulation in a thread must leave the event loop room to serve in the meantime.
REST_S = 0.0005

ASSUMPTIONS = (
    "every registered backend is there all the time, healthy, with today's models, weights and limits",
    "a request takes as long as it took where it went, elsewhere in proportion to the median speeds",
    "a backend that has served none like it is as fast as all of them together",
    "answers take no longer when a backend is busy; beyond its max_concurrency requests queue",
    "a backend fails as often as it did within 30 s of that moment",
    "callers come at the same moments and name the model that answered",
    "other hints (backend, preferred types, session) are not in the log; equal prompts are one session",
)


class TrafficReplay:
    """Replays the log of one service; one replay at a time, in a thread.

    Args:
        manager: Whose backends and settings are used.
    """

    def __init__(self, manager: BackendManager) -> None:
        self._manager = manager
        self._busy = False

    async def run(
        self,
        log: RequestLog,
        strategy: str | None = None,
        since: float | None = None,
        limit: int | None = None,
        principal: str | None = None,
    ) -> dict[str, Any]:
        """What happened, what the router makes of it under the present strategy, and under another.

        Args:
            log: The request log.
            strategy: Name of the other strategy; the present one when absent.
            since: Only requests from then on, in seconds since the epoch.
            limit: How many at most, the latest; USUAL when absent.
            principal: Only what this principal asked.

        Raises:
            BadRequest: An unknown strategy, or nothing to replay.
            QueueFull: Another replay is running.
            DeadlineExceeded: It took longer than LONGEST_S.
        """
        present = self._manager.strategy_name
        chosen = strategy or present
        make_strategy(chosen)
        if self._busy:
            raise QueueFull("another replay is running; try again when it has ended", retry_after=5.0)
        self._busy = True
        ended = threading.Event()
        try:
            records = await log.find(since=since, principal=principal, limit=limit or USUAL)
            house = self._manager.loops.call(
                lambda: House.of(self._manager.router, self._manager.settings.max_attempts)
            )
            return await asyncio.to_thread(_replayed, records, house, present, chosen, ended)
        finally:
            ended.set()
            self._busy = False


def _replayed(
    records: list[RequestRecord], house: House, present: str, chosen: str, ended: threading.Event
) -> dict[str, Any]:
    deadline = time.monotonic() + LONGEST_S

    def stop() -> bool:
        time.sleep(REST_S)
        return ended.is_set() or time.monotonic() > deadline

    kept: list[tuple[RequestRecord, Past]] = []
    left_out: Counter[str] = Counter()
    for record in records:
        past = past_of(record)
        if past is None:
            left_out[record.error or record.outcome] += 1
        else:
            kept.append((record, past))
    if not kept:
        raise BadRequest(
            "there is nothing to replay: the log has no request of this time that a backend could answer",
            param="since",
        )
    traffic = [past for _, past in kept]
    experience = Experience(traffic, [record for record, _ in kept])
    try:
        baseline = Replay(traffic, experience, house, present, stop).run()
        replay = baseline if chosen == present else Replay(traffic, experience, house, chosen, stop).run()
    except Stopped:
        raise DeadlineExceeded(
            f"the replay took longer than {LONGEST_S:g} s; ask for fewer requests with limit or since"
        ) from None
    return {
        "since": min(past.at for past in traffic),
        "until": max(past.at for past in traffic),
        "requests": len(traffic),
        "left_out": dict(left_out),
        "happened": happened(traffic).to_dict(),
        "baseline": baseline.to_dict(),
        "replay": replay.to_dict(),
        "assumptions": list(ASSUMPTIONS),
    }
