"""What this machine lends to its peers, and how it answers them."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from uia_lab.config import InferenceServiceConfig
from uia_lab.domain.backends import BackendStatus
from uia_lab.domain.errors import BadRequest, ModelNotFound, suggestion
from uia_lab.domain.events import Event, Finished, Started
from uia_lab.domain.peers import Load, Offer, OfferedModel
from uia_lab.domain.requests import InferenceRequest, RoutingHints, new_request_id
from uia_lab.domain.tasks import canonical_task
from uia_lab.inference_backend_manager import BackendManager
from uia_lab.routing.lending import is_lent
from uia_lab.routing.registry import Registered

MOST_MODELS = 500
# Whoever lends comes first at their own machine.
PRIORITY = -1
_WELL = (BackendStatus.HEALTHY, BackendStatus.DEGRADED)


@dataclass(frozen=True, slots=True)
class _Lent:
    """What is lent as things stand.

    Args:
        seen: State of the backends it was made of.
        offer: What peers are told.
        ids: The backends.
    """

    seen: tuple[object, ...]
    offer: Offer
    ids: frozenset[str]


class Lending:
    """Serves peers from a manager: through admission and log like anybody, and within what is lent.

    Belongs to the loop of the manager.

    Args:
        manager: Who serves.
        config: ``p2p_shared_models``, ``p2p_shared_tasks``, ``p2p_lent_backends``.

    Raises:
        BadRequest: An unknown task among those shared.

    Attributes:
        touch: Called while a peer is served; a mount that is culled when idle notes that.
    """

    def __init__(self, manager: BackendManager, config: InferenceServiceConfig) -> None:
        self.touch: Callable[[], None] = lambda: None
        self._manager = manager
        self._models = tuple(config.p2p_shared_models)
        self._tasks = frozenset(canonical_task(task) for task in config.p2p_shared_tasks)
        self._named = frozenset(config.p2p_lent_backends)
        self._kept: _Lent | None = None

    def offer(self) -> Offer:
        """What peers may ask for now."""
        return self._lent().offer

    def load(self) -> Load:
        """How busy the manager is, whoever asked."""
        waiting = len(self._manager.router.queue)
        return Load(in_flight=max(0, self._manager.totals.in_flight - waiting), queued=waiting)

    async def serve(self, request: InferenceRequest) -> AsyncGenerator[Event, None]:
        """The answer to a peer; closing it cancels the request.

        Args:
            request: As it came; whom it belongs to, and the way it has come, are taken from it.

        Raises:
            ModelNotFound: The model is not lent.
            BadRequest: It names no model, or one that is not lent for that task.
            InferenceError: How the request failed.
        """
        lent = self._lent()
        _require_lent(lent.offer, request)
        hints = request.routing
        request = msgspec.structs.replace(
            request,
            # Ids of peers must not get into the way of each other's, or of ours.
            id=new_request_id(),
            wire=None,
            routing=RoutingHints(priority=PRIORITY, deadline_s=hints.deadline_s, resume=hints.resume),
            lent=lent.ids,
        )
        async with aclosing(self._manager.open(request)) as events:
            async for event in events:
                self.touch()
                # Who served it here, and why, is nobody's affair there.
                if isinstance(event, Started):
                    yield Started("")
                elif isinstance(event, Finished):
                    yield msgspec.structs.replace(event, attempts=())
                else:
                    yield event

    def _lent(self) -> _Lent:
        registry = self._manager.router.registry
        # Asked for often, and seldom another than the last time.
        seen = (
            registry.version,
            *((entry.enabled, entry.health.status, entry.max_concurrency) for entry in registry),
        )
        if self._kept is None or self._kept.seen != seen:
            # A model that is not on this machine yet is not fetched because a peer asks.
            entries = [
                entry
                for entry in registry
                if entry.enabled and entry.health.status in _WELL and is_lent(entry, self._named)
            ]
            ids = frozenset(entry.backend_id for entry in entries)
            self._kept = _Lent(seen, self._offer_of([entry for entry in entries if entry.routable]), ids)
        return self._kept

    def _offer_of(self, entries: list[Registered]) -> Offer:
        models: dict[str, OfferedModel] = {}
        for entry in entries:
            tasks = frozenset(entry.capabilities.supported_tasks)
            tasks = tasks & self._tasks if self._tasks else tasks
            for name in sorted(entry.models) if tasks else ():
                # A pattern says what an upstream may have; only what it has can be asked for.
                if "*" in name or not self._shares(name):
                    continue
                if name in models or len(models) < MOST_MODELS:
                    models[name] = _merged(models.get(name), _offered(entry, name, tasks))
        limits = [entry.max_concurrency for entry in entries]
        return Offer(
            models=tuple(models.values()),
            hardware_types=tuple(
                sorted({name for entry in entries for name in entry.capabilities.hardware_types})
            ),
            max_concurrent=None if None in limits else sum(filter(None, limits)) or None,
        )

    def _shares(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self._models)


def _require_lent(offer: Offer, request: InferenceRequest) -> None:
    names = [model.name for model in offer.models]
    if request.model is None:
        raise BadRequest(f"name a model that is lent here: {', '.join(names) or 'none'}", param="model")
    for model in offer.models:
        if model.name == request.model:
            if request.task not in model.tasks:
                raise BadRequest(f"the model {model.name!r} is not lent for {request.task}", param="task")
            return
    raise ModelNotFound(
        f"the model {request.model!r} is not lent here.{suggestion(request.model, names)}", param="model"
    )


def _offered(entry: Registered, name: str, tasks: frozenset[str]) -> OfferedModel:
    capabilities = entry.capabilities
    return OfferedModel(
        name=name,
        tasks=tuple(sorted(tasks)),
        digest=capabilities.model_digest.get(name),
        resume=capabilities.resume and name in capabilities.model_digest,
        context_length=capabilities.context_length,
        features=tuple(sorted(capabilities.features)),
    )


def _merged(one: OfferedModel | None, other: OfferedModel) -> OfferedModel:
    """What two backends of one model can both do, since a request may go to either."""
    if one is None:
        return other
    digest = one.digest if one.digest == other.digest else None
    lengths = [length for length in (one.context_length, other.context_length) if length]
    return OfferedModel(
        name=one.name,
        tasks=tuple(sorted({*one.tasks, *other.tasks})),
        digest=digest,
        resume=one.resume and other.resume and digest is not None,
        context_length=min(lengths, default=None),
        features=tuple(sorted({*one.features} & {*other.features})),
    )
