"""One backend over several ways to the same place: the best live one is used, the others stand by."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from uia_lab.backends.cli.backend import CliBackend
from uia_lab.domain.backends import Backend, BackendCapabilities, BackendStatus, BackendType, Probe
from uia_lab.domain.callables import CallableBackend
from uia_lab.domain.errors import BackendFailed, BadRequest, InferenceError, NoBackendAvailable, QueueFull
from uia_lab.domain.events import Chunk, Event, Finished, Relayed
from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.features import needed_features

log = logging.getLogger(__name__)

START_S = 25.0
# Below the time that the manager gives the look at the whole: one way that hangs must not hide the others.
LOOK_S = 4.0
_BUSY = "works on as many requests as it may"
_LIVE = (BackendStatus.HEALTHY, BackendStatus.DEGRADED)


@dataclass(slots=True)
class Part:
    """One of the ways.

    Attributes:
        name: What it is called: its protocol.
        backend: Its adapter.
        capabilities: What it can do, as far as it says so.
        models: Models it serves; empty takes any.
        down: Why nothing is sent there; empty where something is.
        most: Requests at once that are sent there; None for no bound.
        begun: Whether its start was tried, so that there may be something to stop.
        started: Whether it was started.
        running: Requests it works on.
    """

    name: str
    backend: Backend
    capabilities: BackendCapabilities | None
    models: frozenset[str]
    most: int | None = None
    down: str = ""
    begun: bool = False
    started: bool = False
    running: int = 0

    @property
    def runs_program(self) -> bool:
        """Whether a call starts a program."""
        return isinstance(self.backend, CliBackend)

    @property
    def acts(self) -> bool:
        """Whether a call may change the world, so that nobody else is asked once it has begun."""
        return self.capabilities is not None and self.capabilities.side_effects

    def unfit(self, request: InferenceRequest) -> str | None:
        """Why a request cannot go there now; None if it can."""
        if self.down:
            return self.down
        if self.most is not None and self.running >= self.most:
            return _BUSY
        if self.runs_program and request.permitted_types and BackendType.CLI not in request.permitted_types:
            return "the key does not permit command-line tools"
        model = request.model
        if model is not None and self.models and not any(fnmatchcase(model, item) for item in self.models):
            return f"does not serve {model}"
        if self.capabilities is None:
            return None
        if request.task not in self.capabilities.supported_tasks:
            return f"does not do {request.task}"
        if missing := needed_features(request) - self.capabilities.features:
            return f"has no {', '.join(sorted(missing))}"
        return None


class HybridBackend:
    """Serves each request by the first of its parts that is live and can.

    Before the first token the next one takes over. It decides nothing else and sets no deadlines.

    Args:
        parts: Backends or callables by name, the best first. The names are shown as protocols.

    Raises:
        BadRequest: Fewer than two parts, or one that is no backend.
    """

    def __init__(self, parts: Mapping[str, Backend | Callable[..., Any]]) -> None:
        if len(parts) < 2:
            raise BadRequest("a hybrid backend has at least two parts", param="parts")
        self.parts = tuple(_part(name, instance) for name, instance in parts.items())

    def __repr__(self) -> str:
        return f"<HybridBackend: {', '.join(part.name for part in self.parts)}>"

    @property
    def capabilities(self) -> BackendCapabilities | None:
        """What one part or another can do; None where none of them says."""
        known = [part.capabilities for part in self.parts if part.capabilities is not None]
        if not known:
            return None
        return BackendCapabilities(
            supported_tasks=_union(item.supported_tasks for item in known),
            supported_models=self._models(self.parts),
            max_batch_size=max(item.max_batch_size for item in known),
            supports_streaming=any(item.supports_streaming for item in known),
            supports_batching=any(item.supports_batching for item in known),
            hardware_types=_union(item.hardware_types for item in known),
            protocols=_union(item.protocols for item in known) | {part.name for part in self.parts},
            features=_union(item.features for item in known),
            side_effects=any(item.side_effects for item in known),
            external=any(item.external is not False for item in known),
        )

    async def start(self) -> None:
        """Starts all of them; one that starts is enough.

        Raises:
            InferenceError: None did.
        """
        if not any(await asyncio.gather(*map(_started, self.parts))):
            raise BackendFailed("; ".join(part.down for part in self.parts))

    async def stop(self) -> None:
        """Stops all of them."""
        await asyncio.gather(*map(_stopped, self.parts))

    async def probe(self) -> Probe:
        """Looks at all of them, free of charge."""
        await asyncio.gather(*map(_look, self.parts))
        live = [part for part in self.parts if not part.down]
        words = "; ".join(f"{part.name}: {part.down}" for part in self.parts if part.down)
        if not live:
            return Probe(BackendStatus.OFFLINE, words)
        served = f"by {live[0].name}"
        if live[0] is self.parts[0]:
            status = BackendStatus.HEALTHY
            reason = f"{served}; no fallback: {words}" if len(live) == 1 else served
        else:
            status, reason = BackendStatus.DEGRADED, f"{served}; {words}"
        return Probe(status, reason, self._models(live), self.capabilities)

    def relays(self, request: InferenceRequest) -> bool:
        """Whether the part that would serve passes request and answer as they are."""
        part = next((part for part in self.parts if part.unfit(request) is None), None)
        relays: Callable[[InferenceRequest], bool] | None = getattr(part and part.backend, "relays", None)
        return relays is not None and relays(request)

    async def infer(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The answer's events, of the first part that has some.

        Raises:
            NoBackendAvailable: No part can serve it now.
            QueueFull: One could that has enough to do.
            InferenceError: How the last part that was tried failed.
        """
        last: InferenceError | None = None
        for part in self.parts:
            if part.unfit(request) is not None:
                continue
            begun = told = False
            part.running += 1
            try:
                async with aclosing(_generator(part.backend.infer(request))) as events:
                    async for event in events:
                        begun = True
                        told = told or isinstance(event, (Chunk, Relayed, Finished))
                        yield event
                return
            except InferenceError as error:
                last = error
            except Exception as error:  # noqa: BLE001 - whatever a function of the user's raises is that part's failure
                last = BackendFailed(f"{part.name} raised {type(error).__name__}: {error}")
            finally:
                part.running -= 1
            if told or part.runs_program or (begun and part.acts) or not last.retryable:
                raise last
            # Until the next look.
            part.down = last.message
        if last is not None:
            raise last
        reasons = {part.name: part.unfit(request) for part in self.parts}
        words = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        kind = QueueFull if _BUSY in reasons.values() else NoBackendAvailable
        raise kind(f"no part can serve it now ({words})")

    @staticmethod
    def _models(parts: Iterable[Part]) -> frozenset[str]:
        """Models of some parts together; none named where one of them takes any.

        A function takes whatever it is given: of it nothing is known.
        """
        sets = [part.models for part in parts if part.capabilities is not None]
        return frozenset[str]().union(*sets) if all(sets) else frozenset()


def _part(name: str, instance: Backend | Callable[..., Any]) -> Part:
    backend = instance if isinstance(instance, Backend) else CallableBackend(instance)
    capabilities = getattr(instance, "capabilities", None)
    if not isinstance(capabilities, BackendCapabilities):
        capabilities = None
    models = frozenset(capabilities.supported_models if capabilities else ())
    most = (backend.description.max_concurrency or 1) if isinstance(backend, CliBackend) else None
    return Part(name, backend, capabilities, models, most)


async def _started(part: Part) -> bool:
    """Starts a part; whether that went well."""
    part.begun = True
    try:
        async with asyncio.timeout(START_S):
            await part.backend.start()
    except TimeoutError:
        part.down = f"did not start within {START_S:g} s"
    except Exception as error:  # noqa: BLE001 - one way that is closed leaves the others open
        part.down = str(error) or type(error).__name__
    else:
        part.started = True
        part.down = ""
    return part.started


async def _stopped(part: Part) -> None:
    # Of a start that failed, or was cut, something may run all the same.
    begun, part.begun, part.started = part.begun, False, False
    try:
        if begun:
            await part.backend.stop()
    except Exception:
        # One that cannot stop must not keep the others from stopping.
        log.exception("the part %s did not stop", part.name)


async def _look(part: Part) -> None:
    try:
        async with asyncio.timeout(LOOK_S):
            if not (part.started or await _started(part)):
                return
            found = await part.backend.probe()
    except TimeoutError:
        part.down = f"no answer within {LOOK_S:g} s"
    except Exception as error:  # noqa: BLE001 - as above
        part.down = str(error) or type(error).__name__
    else:
        part.down = "" if found.status in _LIVE else found.reason or found.status.value
        if found.capabilities is not None:
            part.capabilities = found.capabilities
        if found.models is not None:
            part.models = found.models


async def _generator(events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    """What can be closed, of what an adapter gives."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


def _union(sets: Iterable[frozenset[str] | set[str]]) -> frozenset[str]:
    return frozenset[str]().union(*sets)
