"""The life of a registered backend: started before it is used, probed while it lives, stopped at the end."""

import asyncio
import logging
import random
from collections.abc import Callable

from uia_lab.domain.backends import Backend, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.routing.registry import Registered
from uia_lab.routing.router import Router
from uia_lab.routing.turns import Turn

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 10.0
HEALTHY_INTERVAL_S = 10.0
FIRST_RETRY_S = 1.0


class Lifecycle:
    """Starts, probes and stops backends on the manager's loop.

    Args:
        router: Where the findings go.
        clock: Seconds, monotonic.
        rng: Jitter of the probe times.
        interval: Longest time between two probes of a backend, seconds.
        changed: Called with the turns that a finding gave to waiting requests.
        used: Backends that were started and are to be stopped, on a loop that has ended too.
    """

    def __init__(
        self,
        router: Router,
        clock: Callable[[], float],
        rng: random.Random,
        interval: float,
        changed: Callable[[list[Turn]], None],
        used: set[Registered],
    ) -> None:
        self._router = router
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self.interval = interval
        self._used = used
        self._starts: dict[Registered, asyncio.Task[None]] = {}
        self._probes: dict[Registered, asyncio.Task[Probe]] = {}
        self._due: dict[Registered, float] = {}
        self._delay: dict[Registered, float] = {}
        self._stops: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    def run_checks(self) -> None:
        """Begins probing in the background; a second call changes nothing."""
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._check_for_ever(), name="uia-health-checks")

    def wake(self) -> None:
        """Tells the background checks that a backend came, went or should be looked at."""
        self._wake.set()

    def is_started(self, entry: Registered) -> bool:
        """Whether the backend is started, so that there is nothing to wait for."""
        task = self._starts.get(entry)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def started(self, entry: Registered) -> None:
        """Waits until the backend is started; concurrent callers share one start.

        Raises:
            InferenceError: It could not start, or not in time.
        """
        task = self._starts.get(entry)
        if task is None or (task.done() and not self.is_started(entry)):
            task = asyncio.create_task(_start(entry.instance), name=f"uia-start-{entry.backend_id}")
            task.add_done_callback(_retrieve)
            self._starts[entry] = task
            self._used.add(entry)
        if not task.done():
            await asyncio.shield(task)
        task.result()

    async def probe(self, entry: Registered) -> None:
        """Looks at one backend now; concurrent callers share one look."""
        task = self._probes.get(entry)
        if task is None:
            task = asyncio.create_task(self._look(entry), name=f"uia-probe-{entry.backend_id}")
            task.add_done_callback(_retrieve)
            self._probes[entry] = task
            task.add_done_callback(lambda _: self._probes.pop(entry, None))
        try:
            found = await asyncio.shield(task)
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if here is not None and here.cancelling():
                raise
            raise BackendFailed(f"{entry.backend_id} was stopped while it was looked at") from None
        if self._router.registry.get(entry.backend_id) is entry:
            self._changed(self._router.probed(entry, found, self._clock()))

    def adopt(self, old: Registered, new: Registered) -> None:
        """Another entry takes over an adapter that is started already; it goes on as it is."""
        if (task := self._starts.pop(old, None)) is not None:
            self._starts[new] = task
        if old in self._used:
            self._used.discard(old)
            self._used.add(new)

    def retire(self, entry: Registered) -> None:
        """Stops a backend that left the registry, in the background."""
        task = asyncio.create_task(self.stop(entry), name=f"uia-stop-{entry.backend_id}")
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def stop(self, entry: Registered) -> None:
        """Ends what runs for a backend and stops it; never raises, never takes for ever."""
        self._due.pop(entry, None)
        self._delay.pop(entry, None)
        begun = self._starts.pop(entry, None)
        pending = [task for task in (begun, self._probes.pop(entry, None)) if task and not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if entry not in self._used:
            return
        self._used.discard(entry)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await entry.instance.stop()
        except Exception:
            # One backend that cannot stop must not keep the others from stopping.
            log.exception("backend %s did not stop", entry.backend_id)

    async def aclose(self) -> None:
        """Ends the checks and stops every backend."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None
        await asyncio.gather(*(self.stop(entry) for entry in self._router.registry), *self._stops)

    async def _look(self, entry: Registered) -> Probe:
        try:
            await self.started(entry)
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                found = await entry.instance.probe()
            if not isinstance(found, Probe):
                raise TypeError(f"probe() must return a Probe, not {found!r}")
            return found
        except TimeoutError:
            return Probe(BackendStatus.OFFLINE, f"no answer to a probe within {PROBE_TIMEOUT_S:.0f} s")
        except InferenceError as error:
            return Probe(BackendStatus.OFFLINE, error.message)
        except Exception as error:
            # An adapter's bug is shown as that backend's state, not as a dead health check.
            log.exception("probe of backend %s failed", entry.backend_id)
            return Probe(BackendStatus.UNHEALTHY, f"probe failed: {type(error).__name__}: {error}")

    async def _check_for_ever(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                now = self._clock()
                live = set(self._router.registry)
                for gone in set(self._due) - live:
                    del self._due[gone]
                    self._delay.pop(gone, None)
                for entry in live:
                    if self._due.setdefault(entry, now) <= now:
                        self._due[entry] = float("inf")
                        group.create_task(self._check(entry))
                wait = min(self._due.values(), default=float("inf")) - now
                try:
                    async with asyncio.timeout(max(0.01, min(wait, self.interval))):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _check(self, entry: Registered) -> None:
        now = self._clock()
        healthy = min(HEALTHY_INTERVAL_S, self.interval)
        if now - entry.stats.last_success >= healthy or entry.health.breaker.consecutive:
            try:
                await self.probe(entry)
            except Exception:
                # One backend's trouble must not end the checks of the others.
                log.exception("backend %s could not be looked at", entry.backend_id)
        if entry.health.status is BackendStatus.HEALTHY:
            delay = healthy
        else:
            delay = min(self._delay.get(entry, FIRST_RETRY_S / 2) * 2, self.interval)
        self._delay[entry] = FIRST_RETRY_S / 2 if entry.health.status is BackendStatus.HEALTHY else delay
        self._due[entry] = self._clock() + delay * self._rng.uniform(0.8, 1.2)
        self._wake.set()


async def _start(instance: Backend) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await instance.start()
    except TimeoutError:
        raise BackendFailed(f"did not start within {START_TIMEOUT_S:.0f} s") from None


def _retrieve(task: asyncio.Task[object]) -> None:
    """Marks an exception as seen: whoever waits for the task gets it, nobody may be waiting."""
    if not task.cancelled():
        task.exception()
