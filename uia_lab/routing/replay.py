"""Past traffic through the router once more, under another strategy and on a virtual clock."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from uia_lab.domain.backends import BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest, RoutingHints
from uia_lab.routing.health import Health
from uia_lab.routing.past import Experience, Past
from uia_lab.routing.registry import Registered
from uia_lab.routing.retry import pause
from uia_lab.routing.router import Router
from uia_lab.routing.stats import BackendStats
from uia_lab.routing.strategies import Tried
from uia_lab.routing.tally import Tally
from uia_lab.routing.turns import Attempt, Expired, Granted, Outcome, Queued, Turn
from uia_lab.routing.virtual_time import VirtualTime

LOOKED_AT = 32
SEED = 20


class Stopped(Exception):
    """The replay was ended before its end."""


@dataclass(frozen=True, slots=True)
class House:
    """What requests come into: the backends and the settings of a router.

    Args:
        backends: Copies of the registered backends.
        aliases: Targets by alias.
        external_policy: As the router's.
        queue_size: As the router's.
        queue_timeout: As the router's.
        max_attempts: Attempts of a request at most.
    """

    backends: Sequence[Registered]
    aliases: Mapping[str, Sequence[str]]
    external_policy: str
    queue_size: int
    queue_timeout: float
    max_attempts: int

    @classmethod
    def of(cls, router: Router, max_attempts: int) -> "House":
        """A copy of a router's house, which a thread may use while the router goes on."""
        return cls(
            [replace(entry) for entry in router.registry],
            {name: tuple(targets) for name, targets in router.eligibility.aliases.items()},
            router.eligibility.external_policy,
            router.queue.size,
            router.queue_timeout,
            max_attempts,
        )

    def router(self, strategy: str, now: float, rng: random.Random) -> Router:
        """A router with nothing learned yet, whose backends are all healthy."""
        router = Router(
            strategy,
            rng=rng,
            external_policy=self.external_policy,
            queue_size=self.queue_size,
            queue_timeout=self.queue_timeout,
        )
        for known in self.backends:
            entry = replace(
                known, in_flight=0, routable=True, registered_at=now, health=Health(), stats=BackendStats()
            )
            router.register(entry, now)
            router.probed(entry, Probe(BackendStatus.HEALTHY, "replayed"), now)
        for name, targets in self.aliases.items():
            router.set_alias(name, targets)
        return router


@dataclass(slots=True, eq=False)
class _Call:
    past: Past
    request: InferenceRequest
    tried: Tried = frozenset()
    number: int = 0


class Replay:
    """One run of past requests through a fresh router.

    Args:
        past: The requests, in any order.
        experience: How quickly backends answer, and when they fail.
        house: The backends and settings.
        strategy: Name of the strategy.
        stop: Asked now and then whether to end early.

    Raises:
        BadRequest: An unknown strategy.
    """

    def __init__(
        self,
        past: Iterable[Past],
        experience: Experience,
        house: House,
        strategy: str,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._past = sorted(past, key=lambda item: item.at)
        self._experience = experience
        self._house = house
        self._stop = stop
        begin = self._past[0].at if self._past else 0.0
        self._time = VirtualTime(begin)
        self._rng = random.Random(SEED)  # noqa: S311 - a simulation
        self._router = house.router(strategy, begin, self._rng)
        self._waiting: dict[int, _Call] = {}
        self.tally = Tally(strategy)

    def run(self) -> Tally:
        """Lets all of it happen.

        Raises:
            Stopped: It was told to end.
        """
        for number, past in enumerate(self._past):
            self._time.at(past.at, self._try, _Call(past, _request(past, number)))
        for step in range(1_000 * len(self._past) + 1):
            if step % LOOKED_AT == 0 and self._stop():
                raise Stopped
            wake, event = self._router.next_tick, self._time.following
            if event == float("inf") and not self._waiting:
                break
            if wake is not None and wake <= event:
                self._time.now = max(self._time.now, wake)
                self._take(self._router.tick(self._time.now))
            else:
                self._time.step()
        return self.tally

    def _try(self, call: _Call) -> None:
        call.number += 1
        answer = self._router.begin(call.request, self._time.now, number=call.number, excluded=call.tried)
        if isinstance(answer, Granted):
            self._serve(call, answer.attempt)
        elif isinstance(answer, Queued):
            self._waiting[answer.ticket.number] = call
            self.tally.queued += 1
        else:
            self._refused(call)

    def _take(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            assert turn.ticket is not None
            call = self._waiting.pop(turn.ticket.number)
            if isinstance(turn, Expired):
                self._refused(call)
            else:
                self._serve(call, turn.attempt)

    def _serve(self, call: _Call, attempt: Attempt) -> None:
        backend_id = attempt.backend.backend_id
        call.tried |= {(backend_id, attempt.request.model)}
        if call.number == 2:
            self.tally.retried += 1
        now = self._time.now
        chance, after = self._experience.failing(backend_id, now)
        if chance and self._rng.random() < chance:
            self._time.at(now + after, self._fails, (call, attempt))
            return
        seconds, first = self._experience.seconds(call.past, backend_id)
        self._time.at(now + seconds, self._ends, (call, attempt, first))

    def _ends(self, ended: tuple[_Call, Attempt, float | None]) -> None:
        call, attempt, first = ended
        now = self._time.now
        if call.past.outcome == "cancelled":
            self.tally.outcomes["cancelled"] += 1
            self._take(self._router.finish(attempt, Outcome("cancelled"), now))
            return
        waited = attempt.started_at - call.past.at
        self.tally.answered(
            attempt.backend.backend_id, now - call.past.at, None if first is None else waited + first
        )
        usage = Usage(0, call.past.tokens)
        self._take(self._router.finish(attempt, Outcome("ok", None, usage, first), now))

    def _fails(self, ended: tuple[_Call, Attempt]) -> None:
        call, attempt = ended
        now = self._time.now
        self._take(self._router.finish(attempt, Outcome("failed", BackendFailed("as it did")), now))
        if call.number >= self._house.max_attempts or not self._router.retries.take(now):
            self.tally.outcomes["failed"] += 1
            return
        self._time.at(now + pause(call.number + 1, self._rng), self._try, call)

    def _refused(self, call: _Call) -> None:
        self.tally.outcomes["failed" if call.tried else "rejected"] += 1


def _request(past: Past, number: int) -> InferenceRequest:
    return InferenceRequest(
        past.task,
        past.model,
        inputs="",
        stream=past.stream,
        routing=RoutingHints(session_id=past.key),
        id=f"replay-{number}",
    )
