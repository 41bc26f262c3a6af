"""The last quarter of an hour of traffic, one sample a second, for whoever looks later than it happened."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from uia_lab.manager.host import Host
from uia_lab.manager.report import transitions
from uia_lab.routing.figures import percentile
from uia_lab.routing.registry import Registered

INTERVAL_S = 1.0
NOTHING = (0, 0, 0)
KEPT = 900
SMOOTHED = 10
"""Samples whose latencies the percentiles of one sample are taken over: a second alone has too few."""


class History:
    """What was in flight, who served how much and how fast, in a ring of KEPT samples.

    Every sample is made from the counters that there are anyway, so that a request costs nothing for it.

    Args:
        host: The manager.
        call: Runs a step where the manager's state may be touched.
        wall: Seconds since the epoch.
    """

    def __init__(
        self, host: Host, call: Callable[[Callable[[], Any]], Any], wall: Callable[[], float] = time.time
    ) -> None:
        self._host = host
        self._call = call
        self._wall = wall
        self._samples: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._latencies: deque[list[float]] = deque(maxlen=SMOOTHED)
        self._before: dict[Registered, tuple[int, int, int]] = {}
        self._taken = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to take samples; a second call changes nothing."""
        if self._task is None:
            # What was served before is no traffic of the first second.
            self._before = self._call(self._counted)
            self._task = asyncio.create_task(self._run(), name="uia-history")

    async def stop(self) -> None:
        """Ends that; what was taken stays."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def take(self) -> None:
        """Takes a sample of what has happened since the last one."""
        self._call(self._take)

    def read(self, after: int = 0, limit: int = KEPT) -> dict[str, Any]:
        """The samples, oldest first.

        Args:
            after: Number of the last sample that is known already; 0 for none.
            limit: How many at most, the newest.

        Returns:
            ``instance_id``, ``interval_s``, ``taken`` (number of the newest sample), ``now`` (seconds since
            the epoch), ``samples`` and ``transitions`` since the first of them. A sample has ``number, at,
            in_flight, waiting``, ``p50_ms`` and ``p95_ms`` of what ended well in its last ten seconds if
            anything did, and ``backends``: of each that did something ``[ok, failed, in flight, output
            tokens, median latency in ms or null]``.
        """
        told: dict[str, Any] = self._call(lambda: self._read(after, limit))
        return told

    def _read(self, after: int, limit: int) -> dict[str, Any]:
        new = min(max(0, self._taken - max(0, after)), limit, len(self._samples))
        samples = list(self._samples)[len(self._samples) - new :]
        since = samples[0]["at"] - INTERVAL_S if samples else self._wall()
        return {
            "instance_id": self._host.instance_id,
            "interval_s": INTERVAL_S,
            "taken": self._taken,
            "now": self._wall(),
            "samples": samples,
            "transitions": [item for item in transitions(self._host) if item["at"] >= since],
        }

    def _take(self) -> None:
        host = self._host
        self._taken += 1
        sample: dict[str, Any] = {
            "number": self._taken,
            "at": round(self._wall(), 3),
            "in_flight": host.totals.in_flight,
            "waiting": len(host.router.queue),
        }
        before, self._before = self._before, self._counted()
        latencies: list[float] = []
        backends = {}
        for entry in host.router.registry:
            old = before.get(entry, NOTHING)
            ok, failed, tokens = (new - old[index] for index, new in enumerate(self._before[entry]))
            if ok or failed or entry.in_flight:
                mine = _last(entry.stats.figures.latencies, ok)
                latencies += mine
                backends[entry.backend_id] = [ok, failed, entry.in_flight, tokens, _ms(mine, 50)]
        self._latencies.append(latencies)
        lately = [latency for each in self._latencies for latency in each]
        for name, share in (("p50_ms", 50), ("p95_ms", 95)):
            if (value := _ms(lately, share)) is not None:
                sample[name] = value
        sample["backends"] = backends
        self._samples.append(sample)

    def _counted(self) -> dict[Registered, tuple[int, int, int]]:
        """Attempts that ended well and badly, and output tokens, of each backend so far."""
        all_figures = {entry: entry.stats.figures for entry in self._host.router.registry}
        return {
            entry: (figures.counters.ok, figures.counters.failed, figures.output_tokens)
            for entry, figures in all_figures.items()
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            # By the clock and not by the pause, or a busy loop would make the seconds longer.
            due = max(due + INTERVAL_S, loop.time())
            await asyncio.sleep(due - loop.time())
            self.take()


def _last(values: deque[float], count: int) -> list[float]:
    return [values[-number] for number in range(min(count, len(values)), 0, -1)]


def _ms(values: Iterable[float], share: int) -> float | None:
    value = percentile(values, share)
    return None if value is None else round(value * 1000, 1)
