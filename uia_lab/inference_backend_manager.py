"""BackendManager: registers backends, keeps them healthy, and takes each request through its journey."""

import asyncio
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from uia_lab.access.limits import Admission
from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import (
    Backend,
    BackendCapabilities,
    BackendInfo,
    BackendMetrics,
    BackendStatus,
    BackendType,
    member,
)
from uia_lab.domain.errors import NoBackendAvailable
from uia_lab.domain.records import RequestRecord
from uia_lab.domain.requests import InferenceRequest, InferenceResult, Message
from uia_lab.domain.tasks import canonical_task
from uia_lab.manager.arguments import (
    configure_router,
    example_request,
    make_entry,
    make_request,
    setting_names,
    settings_of,
)
from uia_lab.manager.controls import Controls
from uia_lab.manager.journey import travel
from uia_lab.manager.lifecycle import Lifecycle
from uia_lab.manager.loops import LoopBound
from uia_lab.manager.report import (
    backend_info,
    backend_infos,
    maybe_info,
    status_report,
    topic_state,
    transitions,
    troubles,
)
from uia_lab.manager.running import Running
from uia_lab.manager.stream import ResponseStream
from uia_lab.manager.topics import Topics
from uia_lab.manager.watch import Alarm
from uia_lab.routing.decision import Decision
from uia_lab.routing.figures import Counters
from uia_lab.routing.queues import Ticket
from uia_lab.routing.registry import Registered
from uia_lab.routing.router import Router
from uia_lab.routing.strategies import make_strategy
from uia_lab.routing.turns import Attempt, Expired, Granted, Turn

__all__ = [
    "BackendCapabilities",
    "BackendInfo",
    "BackendManager",
    "BackendMetrics",
    "BackendStatus",
    "BackendType",
    "ResponseStream",
    "get_backend_manager",
]


class BackendManager(Controls):
    """Chooses the best backend for each request and moves the request on when one fails.

    It belongs to the loop of its first asynchronous call. Synchronous methods may be called from any
    thread; asynchronous ones from any loop.

    Args:
        config: An InferenceServiceConfig, or a mapping of ``load_balancing``, ``health_check_interval``,
            ``enable_health_checks`` and any other of its settings.
        clock: Seconds, monotonic.
        rng: Source of random numbers for the strategies and jitter.

    Raises:
        ConfigError: An unknown setting or a bad value.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | InferenceServiceConfig | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings_of(config)
        self.instance_id = f"uia-{uuid.uuid4().hex[:12]}"
        self.clock = clock
        self.totals = Counters()
        self.running: dict[str, Running] = {}
        self.on_record: Callable[[RequestRecord], None] | None = None
        self.admit: Callable[[InferenceRequest], Admission] | None = None
        self.log_prompts = False
        self.waiting: dict[Ticket, asyncio.Future[Attempt]] = {}
        self.rng = rng or random.Random()  # noqa: S311 - balancing needs no secrecy
        self.router = Router(self.settings.load_balancing_strategy, rng=self.rng)
        self._closed = False
        self._used: set[Registered] = set()
        self.loops = LoopBound()
        self._timer: asyncio.TimerHandle | None = None
        self._parts()
        self._apply()

    def __repr__(self) -> str:
        return (
            f"<BackendManager {self.instance_id}: {len(self.router.registry)} backends, {self.strategy_name}>"
        )

    @property
    def closed(self) -> bool:
        """Whether it has been closed, and is of no more use."""
        return self._closed

    def configure(self, config: Mapping[str, Any] | InferenceServiceConfig) -> None:
        """Applies settings while it runs: of a mapping those named, of a configuration all.

        Raises:
            ConfigError: An unknown setting or a bad value; nothing has changed then.
        """
        settings = settings_of(config)
        strategy = make_strategy(settings.load_balancing_strategy)

        def change() -> None:
            for name in setting_names(config):
                setattr(self.settings, name, getattr(settings, name))
            if self.settings.load_balancing_strategy != self.strategy_name:
                self.router.strategy = strategy
            self._apply()

        self.loops.call(change)

    def register_backend(
        self,
        backend_id: str,
        backend_type: BackendType | str,
        name: str,
        instance: Backend | Callable[..., Any],
        capabilities: BackendCapabilities | None = None,
        endpoint: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        max_concurrency: int | None = None,
    ) -> BackendInfo:
        """Adds a backend; one of the same id is replaced.

        Args:
            backend_id: Unique id.
            backend_type: Its kind, as a member or its value.
            name: Its name for people.
            instance: A Backend, or a function, generator, async function or async generator that is called
                with those of ``request, task, model, inputs, parameters`` it accepts.
            capabilities: What it can do; an adapter's own ``capabilities`` when absent.
            endpoint: Where it is; without credentials.
            metadata: Free-form facts.
            weight: Share of traffic against its peers, above 0.
            max_concurrency: Requests at once; None for no bound.

        Raises:
            BadRequest: A bad field, named in ``param``; nothing has changed then.
        """
        entry = make_entry(
            backend_id,
            backend_type,
            name,
            instance,
            capabilities,
            endpoint,
            metadata,
            weight,
            max_concurrency,
            self.clock(),
        )

        def add() -> BackendInfo:
            old = self.router.register(entry, self.clock())
            if old is not None and old.instance is entry.instance:
                self.lifecycle.adopt(old, entry)
            elif old is not None:
                self._retire(old)
            self.settle(self.router.tick(self.clock()))
            return backend_info(self, entry)

        return self.loops.call(add)

    def unregister_backend(self, backend_id: str) -> bool:
        """Takes a backend out and stops it; False if there was none."""

        def remove() -> bool:
            entry, turns = self.router.unregister(backend_id, self.clock())
            if entry is not None:
                self._retire(entry)
            self.settle(turns)
            return entry is not None

        return self.loops.call(remove)

    def get_backend(self, backend_id: str) -> BackendInfo | None:
        """A snapshot of one backend, or None."""
        return self.loops.call(lambda: maybe_info(self, self.router.registry.get(backend_id)))

    def list_backends(
        self,
        backend_type: BackendType | str | None = None,
        status: BackendStatus | str | None = None,
        task: str | None = None,
    ) -> list[BackendInfo]:
        """Snapshots of the backends of that type, status and task, in order of registration."""
        kind = None if backend_type is None else member(BackendType, backend_type, "backend_type")
        state = None if status is None else member(BackendStatus, status, "status")
        wanted = None if task is None else canonical_task(task)
        return self.loops.call(lambda: backend_infos(self, kind, state, wanted))

    def select_backend_for_task(
        self,
        task: str,
        model: str | None = None,
        preferred_types: Iterable[BackendType | str] | None = None,
        required_protocols: Iterable[str] | None = None,
    ) -> BackendInfo | None:
        """The backend that would serve now, or None; it is not leased, but the strategy's turn advances."""
        request = example_request(task, model, preferred_types, required_protocols, None)

        return self.loops.call(lambda: maybe_info(self, self.router.choose(request, self.clock())))

    def explain(
        self,
        task: str,
        model: str | None = None,
        preferred_types: Iterable[BackendType | str] | None = None,
        required_protocols: Iterable[str] | None = None,
        backend_id: str | None = None,
        *,
        stream: bool = True,
    ) -> Decision:
        """Who would serve such a request now, and why not the others; changes nothing.

        Args:
            task: Task name or alias.
            model: Model name; None for the default local model.
            preferred_types: Types to try first.
            required_protocols: Protocols a backend must speak.
            backend_id: Only this backend.
            stream: Whether it would be streamed: speeds are known for both kinds apart.
        """
        request = example_request(task, model, preferred_types, required_protocols, backend_id, stream=stream)
        return self.loops.call(lambda: self.router.explain(request, self.clock()))

    async def infer(
        self,
        task: str,
        model: str | None = None,
        inputs: Any = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **hints: Any,
    ) -> InferenceResult:
        """Serves one request and gives the whole answer.

        Args:
            task: Task name or alias.
            model: Model name; None for the default local model.
            inputs: Task inputs, or None with ``messages``.
            parameters: Sampling and task parameters under their OpenAI names.
            messages: Chat messages.
            **hints: Fields of :class:`uia_lab.domain.requests.RoutingHints`.

        Raises:
            InferenceError: How the request failed.
        """
        return await self.run(make_request(task, model, inputs, parameters, messages, hints, stream=False))

    def stream(
        self,
        task: str,
        model: str | None = None,
        inputs: Any = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **hints: Any,
    ) -> ResponseStream:
        """The events of one answer as they come; arguments as in :meth:`infer`."""
        return self.open(make_request(task, model, inputs, parameters, messages, hints, stream=True))

    async def run(self, request: InferenceRequest) -> InferenceResult:
        """Serves a request that is built already, and gives the whole answer."""
        return await self.open(request).result()

    def open(self, request: InferenceRequest) -> ResponseStream:
        """The answer of a request that is built already; nothing runs before it is read.

        Raises:
            NoBackendAvailable: The manager is closed.
        """
        if self._closed:
            raise NoBackendAvailable("the manager is closed")
        self._bind()
        return ResponseStream(request, travel(self, request), self.loops)

    def cancel(self, request_id: str) -> bool:
        """Ends a running request; its stream raises Cancelled. False if it is not running."""
        running = self.loops.call(lambda: self.running.get(request_id))
        if running is not None:
            self.loops.call(running.cancel)
        return running is not None

    @property
    def transitions(self) -> list[dict[str, Any]]:
        """The latest changes of status, oldest first: ``backend_id, was, status, routable, reason, at``."""
        return self.loops.call(lambda: transitions(self))

    def troubles(self, backend_id: str) -> dict[str, list[dict[str, Any]]]:
        """What went wrong at a backend lately: its last ``errors`` and ``transitions``, newest first.

        Raises:
            BadRequest: No such backend.
        """
        return self.loops.call(lambda: troubles(self, self.entry(backend_id)))

    async def probe(self, backend_id: str) -> BackendInfo:
        """Looks at a backend now, free of charge, and gives what it found.

        Raises:
            BadRequest: No such backend.
        """

        async def look() -> BackendInfo:
            entry = self.entry(backend_id)
            await self.lifecycle.probe(entry)
            return backend_info(self, entry)

        self._bind()
        return await self.loops.carry(look)

    def get_backend_status_report(self) -> dict[str, Any]:
        """The status of everything, JSON-ready; totals count requests, a backend's metrics attempts."""
        return self.loops.call(lambda: status_report(self))

    async def subscribe(self, topic: str) -> AsyncIterator[dict[str, Any]]:
        """The state of a topic now and after each change, newest wins; close it with ``aclose()``.

        Args:
            topic: ``inference``, ``status``, ``backend`` or ``queue``.

        Raises:
            BadRequest: No such topic.
        """
        self._bind()
        states = self._topics.subscribe(topic)
        try:
            while (state := await self.loops.carry(lambda: anext(states, None))) is not None:
                yield state
        finally:
            await self.loops.carry(states.aclose)

    async def aclose(self) -> None:
        """Ends every request, stops every backend; the manager is of no more use then."""
        self._closed = True
        self.loops.bind(self._parts)
        await self.loops.carry(self._close)

    async def _close(self) -> None:
        for running in list(self.running.values()):
            running.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._topics.end()
        self.alarm.close()
        await self.lifecycle.aclose()

    def settle(self, turns: list[Turn]) -> None:
        """Hands backends to the requests that waited for them, and sets the one timer anew."""
        pending = deque(turns)
        while pending:
            turn = pending.popleft()
            future = self.waiting.get(turn.ticket) if turn.ticket is not None else None
            match turn:
                case Granted(attempt=attempt) if future is not None and not future.done():
                    future.set_result(attempt)
                case Granted(attempt=attempt):
                    # Whoever waited has left in this very turn of the loop: the next in line gets it.
                    pending += self.router.give_back(attempt, self.clock())
                case Expired(error=error) if future is not None and not future.done():
                    future.set_exception(error)
                    # The caller may leave before it looks.
                    future.exception()
        loop = self.loops.alive
        if loop is None:
            return
        self._topics.changed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.router.next_tick
        if due is not None and not self._closed:
            self._timer = loop.call_later(max(0.0, due - self.clock()), self._tick)

    def _tick(self) -> None:
        self.settle(self.router.tick(self.clock()))

    def _apply(self) -> None:
        self.request_timeout = self.settings.request_timeout
        self.max_attempts = self.settings.max_attempts
        self.lifecycle.interval = self.settings.backend_health_check_interval
        configure_router(self.router, self.settings)
        self.settle([])

    def _parts(self) -> None:
        """What belongs to one loop; the backends that an ended one had started are still to be stopped."""
        interval = self.settings.backend_health_check_interval
        self.lifecycle = Lifecycle(self.router, self.clock, self.rng, interval, self.settle, self._used)
        self.alarm = Alarm()
        self._topics = Topics(lambda topic: topic_state(self, topic))

    def _bind(self) -> None:
        loop = self.loops.bind(self._parts)
        if self.settings.backend_health_checks and not self._closed and loop is asyncio.get_running_loop():
            self.lifecycle.run_checks()

    def _retire(self, entry: Registered) -> None:
        if self.loops.alive is not None:
            self.lifecycle.retire(entry)
        self.lifecycle.wake()


_shared: BackendManager | None = None
_shared_lock = threading.Lock()


def get_backend_manager(config: Mapping[str, Any] | InferenceServiceConfig | None = None) -> BackendManager:
    """The manager of this process, made at the first call.

    Args:
        config: As for :class:`BackendManager`; a later one is applied to the manager there is.

    Raises:
        ConfigError: A bad setting, or a later value for one that cannot change while it runs.
    """
    global _shared
    with _shared_lock:
        if _shared is None or _shared.closed:
            _shared, config = BackendManager(config), None
        manager = _shared
    if config is not None:
        # Outside the lock: it hops to the manager's loop, which may be asking for the manager just now.
        manager.configure(config)
    return manager
