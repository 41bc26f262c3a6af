"""Finds APIs: by the keys in the environment and at known ports of this machine."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from uia_lab.access.endpoints import is_loopback
from uia_lab.backends.factory import BackendFactory
from uia_lab.backends.providers import PROVIDERS, Provider, provider_named
from uia_lab.discovery.owners import stranger_at
from uia_lab.discovery.places import Place, places
from uia_lab.discovery.rounds import Rounds
from uia_lab.discovery.watched import Watched, of_another_user
from uia_lab.domain.backends import Backend, BackendInfo, BackendStatus
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import InferenceError, NoBackendAvailable
from uia_lab.inference_backend_manager import BackendManager

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
LONGEST_S = 1800.0
LOOK_S = 10.0
AT_ONCE = 8
ROUNDS_GONE = 5
_WELL = (BackendStatus.HEALTHY, BackendStatus.DEGRADED, BackendStatus.INITIALIZING)


@dataclass(frozen=True, slots=True)
class Found:
    """Something that was found, used or not.

    Args:
        endpoint: Where it is, without credentials and query.
        source: What led there.
        provider: Who it is, as far as known.
        backend_id: The backend it is, where it is one.
        usable: Whether requests can go there.
        reason: Why, or why not.
        type: Value of the type of backend it is, or would be.
    """

    endpoint: str
    source: str
    provider: str | None
    backend_id: str | None
    usable: bool
    reason: str
    type: str = "api"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(slots=True)
class _State:
    """What is remembered of a place between two looks."""

    place: Place
    found: Found | None = None
    description: BackendDescription | None = None
    backend: Backend | None = None
    due: float = 0.0
    wait: float = 0.0
    missed: int = 0


class ApiDiscovery:
    """Looks around at start and again and again; what answers a free question well is registered.

    Args:
        manager: Where backends are registered.
        factory: Builds them.
        names: Providers that are wanted; all of them when empty.
        ports: Ports of this machine where servers are looked for.
        own: Gives the ports this process listens at itself.
        environ: The environment; that of the process when absent.
        interval: Seconds between two rounds.
        clock: Seconds, monotonic.
        rng: Jitter of the rounds.

    Raises:
        BadRequest: A name that is no provider's; the message lists the known ones.
    """

    def __init__(
        self,
        manager: BackendManager,
        factory: BackendFactory,
        names: Sequence[str] = (),
        ports: Sequence[int] = (),
        own: Callable[[], Collection[int]] = frozenset,
        *,
        environ: Mapping[str, str] | None = None,
        interval: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._manager = manager
        self._factory = factory
        named = {provider_named(name).name: provider_named(name) for name in names}
        self._wanted: Mapping[str, Provider] = named or PROVIDERS
        self._ports = ports
        self._own = own
        self._environ = os.environ if environ is None else environ
        self._interval = interval
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter needs no secrecy
        self._states: dict[str, _State] = {}
        self._round = asyncio.Lock()
        self._rounds = Rounds(self.look, "APIs", lambda: interval * self._rng.uniform(0.8, 1.2))

    def __repr__(self) -> str:
        return f"<ApiDiscovery: {len(self.found())} found>"

    def start(self) -> None:
        """Begins to look around in the background."""
        self._rounds.start()

    async def stop(self) -> None:
        """Ends it; what was registered stays."""
        await self._rounds.stop()

    def found(self) -> list[Found]:
        """What answered, or was named and did not; in the order of the places."""
        return [state.found for state in self._states.values() if state.found is not None]

    def give_way(self) -> None:
        """Takes out what was found and is registered by hand too; called after each addition."""
        for state in self._states.values():
            if state.found is not None and state.backend is not None:
                self._registered(state.place, state)

    async def look(self) -> list[Found]:
        """Looks at every place now and gives what was found."""
        async with self._round:
            current = await asyncio.to_thread(
                places, self._wanted.values(), self._factory.secrets, self._environ, self._ports
            )
            own = self._own()
            current = [place for place in current if not _is_own(place.endpoint, own)]
            endpoints = {place.endpoint for place in current}
            for endpoint in [endpoint for endpoint in self._states if endpoint not in endpoints]:
                self._withdraw(self._states.pop(endpoint))
            gate = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for place in current:
                    group.create_task(self._visit(place, gate), name=f"uia-look-{place.source}")
        return self.found()

    async def _visit(self, place: Place, gate: asyncio.Semaphore) -> None:
        state = self._states.setdefault(place.endpoint, _State(place))
        state.place = place
        if await self._taken_over(place, state):
            return
        if self._registered(place, state) or self._clock() < state.due:
            return
        async with gate:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._examine(place, state)
                state.missed, state.wait = 0, 0.0
                return
            except TimeoutError:
                self._unusable(place, state, f"no answer within {LOOK_S:g} s")
            except NoBackendAvailable as error:
                self._nobody(place, state, error)
            except InferenceError as error:
                self._unusable(place, state, error.message)
            except Exception as error:
                log.exception("looking at %s failed", place.shown)
                self._unusable(place, state, f"{type(error).__name__}: {error}")
        state.wait = min(max(state.wait * 2, self._interval / 2), LONGEST_S)
        state.due = self._clock() + state.wait

    async def _taken_over(self, place: Place, state: _State) -> bool:
        """Whether another user's server is now where ours was; it goes then, well as it may look."""
        if self._mine(state) is None:
            return False
        user = await asyncio.to_thread(_stranger, place)
        if user is None:
            return False
        self._withdraw(state)
        self._unusable(place, state, of_another_user(user))
        return True

    def _registered(self, place: Place, state: _State) -> bool:
        """Whether there is nothing to do: it serves already, or somebody decided about it."""
        if (other := self._at(place.endpoint, state)) is not None:
            self._withdraw(state)
            state.found = Found(
                place.endpoint,
                place.source,
                place.provider.name if place.provider else None,
                other.backend_id,
                other.routable,
                f"is registered as {other.backend_id}",
            )
            return True
        if state.description is None:
            return False
        mine = self._mine(state)
        if mine is None:
            self._note(place, state, "was removed; add it by hand to have it back", usable=False)
            return True
        if mine.status in _WELL:
            state.missed = 0
            self._note(place, state, mine.reason, usable=True)
            return True
        return False

    def _at(self, endpoint: str, state: _State) -> BackendInfo | None:
        """Who else is registered at that server; once ours is, whoever somebody registered by hand."""
        ours = state.description.endpoint if state.description is not None else None
        found = [other.backend for other in self._states.values() if other.backend is not None]
        for backend in self._manager.list_backends("api"):
            if backend.endpoint is None or not _same_server(backend.endpoint, endpoint):
                continue
            if ours is None:
                return backend
            # One host elsewhere may have several APIs, each below a path of its own.
            same = is_loopback(ours) or urlsplit(backend.endpoint).path == urlsplit(ours).path
            if same and not any(backend.instance is mine for mine in found):
                return backend
        return None

    def _mine(self, state: _State) -> BackendInfo | None:
        """The backend that was registered for a place, unless it was removed or replaced since."""
        if state.description is None:
            return None
        backend = self._manager.get_backend(state.description.id)
        return backend if backend is not None and backend.instance is state.backend else None

    async def _examine(self, place: Place, state: _State) -> None:
        """Asks who is there and whether it can serve, for nothing; registers it if so."""
        user = await asyncio.to_thread(_stranger, place)
        if user is not None:
            self._unusable(place, state, of_another_user(user))
            return
        description = await self._factory.complete(
            BackendDescription(
                id="found",
                type="api",
                endpoint=place.endpoint,
                api_key_env=place.key,
                options={} if place.provider is None else {"provider": place.provider.name},
            )
        )
        name = str(description.options["provider"])
        if name not in self._wanted and place.provider is None and place.guessed:
            self._unusable(place, state, f"is {PROVIDERS[name].title}, which api_backends leaves out")
            return
        if state.description is not None:
            # Registered and not well: the manager's probes see it return, unless another server came.
            known, now = state.description, self._mine(state)
            if now is None:
                self._note(place, state, "was removed; add it by hand to have it back", usable=False)
                return
            if msgspec.structs.replace(description, id=known.id, name=known.name) == known:
                if now.status is BackendStatus.OFFLINE:
                    raise NoBackendAvailable(now.reason)
                return
            self._withdraw(state)
        description = msgspec.structs.replace(description, name=PROVIDERS[name].title)
        backend = self._build(place, description)
        try:
            await backend.start()
            probe = await backend.probe()
        finally:
            await backend.stop()
        if probe.status not in _WELL:
            self._unusable(place, state, probe.reason, name)
            return
        # No await from here to the registration: whoever came first meanwhile has the server and the id.
        if not self._registered(place, state):
            await self._register(
                place, state, msgspec.structs.replace(description, id=self._free_id(place, name))
            )

    def _build(self, place: Place, description: BackendDescription) -> Backend:
        backend = self._factory.build(description)
        return Watched(backend, lambda: _stranger(place)) if place.guessed else backend

    async def _register(self, place: Place, state: _State, description: BackendDescription) -> None:
        backend = self._build(place, description)
        self._manager.register_backend(
            description.id,
            description.type,
            description.name or description.id,
            backend,
            endpoint=description.endpoint,
            metadata={"found": place.source},
            max_concurrency=description.max_concurrency,
        )
        state.description, state.backend = description, backend
        log.info("found %s at %s (%s)", description.name, description.endpoint, place.source)
        # Until then nobody knows its models.
        self._note(place, state, "is looked at", usable=False)
        with suppress(InferenceError):
            # It may be taken out while it is looked at.
            await self._manager.probe(description.id)
        mine = self._mine(state)
        if mine is not None and not self._registered(place, state):
            self._note(place, state, mine.reason, usable=True)

    def _nobody(self, place: Place, state: _State, error: InferenceError) -> None:
        """Nobody answers: what was there goes after a while; what was only guessed at is not listed."""
        state.missed += 1
        if state.description is not None:
            if state.missed < ROUNDS_GONE:
                self._note(place, state, error.message, usable=False)
                return
            self._withdraw(state)
        if place.guessed and "not ready" not in error.message:
            state.found = None
        else:
            self._unusable(place, state, error.message)

    def _withdraw(self, state: _State) -> None:
        mine, state.description, state.backend, state.missed = self._mine(state), None, None, 0
        if mine is not None:
            self._manager.unregister_backend(mine.backend_id)

    def _note(self, place: Place, state: _State, reason: str, *, usable: bool) -> None:
        assert state.description is not None
        state.found = Found(
            place.shown,
            place.source,
            str(state.description.options["provider"]),
            state.description.id if self._mine(state) is not None else None,
            usable,
            reason,
        )

    def _unusable(self, place: Place, state: _State, reason: str, provider: str | None = None) -> None:
        known = provider or (place.provider.name if place.provider is not None else None)
        state.found = Found(place.shown, place.source, known, None, False, reason)

    def _free_id(self, place: Place, provider: str) -> str:
        """The provider's name, with the port where it is on this machine; a number behind it if taken."""
        port = urlsplit(place.endpoint).port
        stem = f"{provider}-{port}" if is_loopback(place.endpoint) and port else provider
        number, name = 1, stem
        while self._manager.get_backend(name) is not None:
            number += 1
            name = f"{stem}-{number}"
        return name


def _stranger(place: Place) -> int | None:
    """The other user whose server is at a port that was only guessed; may block."""
    return stranger_at(_server(place.endpoint)[1]) if place.guessed else None


def _server(endpoint: str) -> tuple[str | None, int]:
    parts = urlsplit(endpoint)
    host = "127.0.0.1" if is_loopback(endpoint) else parts.hostname
    return host, parts.port or (443 if parts.scheme == "https" else 80)


def _same_server(one: str, other: str) -> bool:
    try:
        return _server(one) == _server(other)
    except ValueError:
        return False


def _is_own(endpoint: str, ports: Collection[int]) -> bool:
    try:
        return is_loopback(endpoint) and _server(endpoint)[1] in ports
    except ValueError:
        return False
