"""Who can serve a request, and why the others cannot."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from uia_lab.domain.backends import BackendStatus, BackendType
from uia_lab.domain.errors import (
    BadRequest,
    InferenceError,
    ModelNotFound,
    NoBackendAvailable,
    NotAllowed,
    Unsupported,
    suggestion,
)
from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.aliases import Aliases, Target
from uia_lab.routing.features import NAMES, WORDS, needed_features
from uia_lab.routing.registry import Registered, Registry

CACHE_SIZE = 256
REASONS = 10


class Demand(msgspec.Struct, frozen=True):
    """What a request needs of a backend, and nothing else of it: the key of the cache.

    ``digest`` is that of the weights an answer began with, where it is to go on elsewhere; ``features`` are
    those of :mod:`uia_lab.routing.features`.
    """

    task: str
    model: str | None
    backend_id: str | None
    preferred_types: tuple[BackendType, ...]
    required_protocols: frozenset[str]
    digest: str | None = None
    permitted_types: frozenset[BackendType] = frozenset()
    features: frozenset[str] = frozenset()
    excluded_backends: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Tier:
    """Backends of equal preference, and the model to ask them for."""

    members: tuple[Registered, ...]
    model: str | None


@dataclass(frozen=True, slots=True)
class Eligible:
    """Backends that can serve a demand and are routable, in tiers of preference, best first.

    ``closed`` are those that can serve it and come back by the passing of time.
    """

    tiers: tuple[Tier, ...]
    closed: tuple[tuple[Registered, str | None], ...]

    @property
    def count(self) -> int:
        """How many are routable."""
        return sum(len(tier.members) for tier in self.tiers)


class Eligibility:
    """Filters the registry by what a request needs; lists are cached until the registry changes.

    Args:
        registry: Who is registered.
        external_policy: ``never``, ``named`` or ``any``.
        default_models: Model of a request that names none, by task.
    """

    def __init__(
        self, registry: Registry, external_policy: str, default_models: Mapping[str, str] | None = None
    ) -> None:
        self._registry = registry
        self.external_policy = external_policy
        self.default_models = dict(default_models or {})
        self.aliases = Aliases()
        self._cache: dict[Demand, Eligible] = {}
        self._version = -1

    def demand(self, request: InferenceRequest) -> Demand:
        """What the request needs; a request that names nothing gets the default local model.

        The default applies only where a backend serves it by name and can do what is asked: a manager that
        has none of the local models, or only such as have no tools, takes whoever does the task.
        """
        hints = request.routing
        model = request.model
        features = needed_features(request)
        if model is None and hints.backend_id is None and not hints.preferred_types:
            default = self.default_models.get(request.task)
            if default is not None and any(
                default in entry.models and features <= entry.capabilities.features
                for entry in self._registry
            ):
                model = default
        return Demand(
            request.task,
            model,
            hints.backend_id,
            hints.preferred_types,
            hints.required_protocols,
            request.resumed.digest if request.resumed is not None else None,
            request.permitted_types,
            features,
            hints.excluded_backends,
        )

    def find(self, demand: Demand) -> Eligible:
        """Backends for the demand."""
        if self._version != self._registry.version:
            self._cache.clear()
            self._version = self._registry.version
        found = self._cache.get(demand)
        if found is None:
            if len(self._cache) >= CACHE_SIZE:
                del self._cache[next(iter(self._cache))]
            found = self._cache[demand] = self._search(demand)
        return found

    def links(self, demand: Demand) -> list[tuple[Demand, Target | None]]:
        """The demand itself or, for an alias, one demand for each of its targets."""
        if demand.model is None or demand.model not in self.aliases:
            return [(demand, None)]
        ids = {entry.backend_id: entry for entry in self._registry}
        chain = self.aliases.chain(demand.model, ids)
        return [(msgspec.structs.replace(demand, model=target.model), target) for target in chain]

    def tier(self, entry: Registered, demand: Demand) -> int:
        """Which tier of preference the backend stands in; 0 is the best."""
        width = len(demand.preferred_types) + 1
        for number, (link, target) in enumerate(self.links(demand)):
            if self.unfit(entry, link, target) is None:
                return number * width + _preference(entry, demand)
        return _preference(entry, demand)

    def unfit(self, entry: Registered, demand: Demand, target: Target | None = None) -> str | None:
        """Why the backend can never serve the demand as things stand; None if it can.

        Args:
            entry: The backend.
            demand: What is needed.
            target: The link of an alias that is looked at.
        """
        capabilities = entry.capabilities
        if demand.backend_id is not None and entry.backend_id != demand.backend_id:
            return f"not the backend asked for ({demand.backend_id})"
        if entry.backend_id in demand.excluded_backends:
            return "excluded by the request"
        prefix = target.prefix if target is not None else None
        if prefix is not None and prefix not in (entry.backend_id, entry.type.value):
            return f"alias: the target is {prefix}:{demand.model}"
        if demand.task not in capabilities.supported_tasks:
            return f"task: does not do {demand.task}"
        if demand.model is not None and not entry.serves(demand.model):
            return f"model: does not serve {demand.model}"
        missing = demand.required_protocols - capabilities.protocols
        if missing:
            return f"protocols: does not speak {', '.join(sorted(missing))}"
        if demand.permitted_types and entry.type not in demand.permitted_types:
            return f"key: does not permit backends of type {entry.type.value}"
        if demand.digest is not None and not (
            capabilities.resume and capabilities.model_digest.get(demand.model or "") == demand.digest
        ):
            return "resume: cannot continue what others began, or has other weights"
        if missing := demand.features - capabilities.features:
            return f"features: has no {', '.join(sorted(missing))}"
        if entry.external and target is None and not self._external_allowed(entry, demand):
            return "external: not named" if self.external_policy == "named" else "external: never allowed"
        if entry.external and self.external_policy == "never":
            return "external: never allowed"
        return None

    def closed(self, entry: Registered) -> str | None:
        """Why a backend that fits takes no request now; None if it does."""
        if not entry.enabled:
            return "drained: no new requests"
        if not entry.routable:
            return f"{entry.health.status.value}: {entry.health.reason}"
        return None

    def why_not(self, entry: Registered, demand: Demand) -> str | None:
        """Why the backend cannot serve the demand now, whichever link of an alias is looked at."""
        reasons = [self.unfit(entry, link, target) for link, target in self.links(demand)]
        return reasons[0] if None not in reasons else self.closed(entry)

    def refusal(self, demand: Demand) -> InferenceError:
        """The error for a demand that nobody can serve now."""
        entries = list(self._registry)
        served = self._registry.models()
        if demand.backend_id is not None and self._registry.get(demand.backend_id) is None:
            known = suggestion(demand.backend_id, (entry.backend_id for entry in entries))
            return BadRequest(f"no backend {demand.backend_id!r} is registered.{known}", param="backend_id")
        model = demand.model
        if model is not None and model not in self.aliases:
            serving = [entry for entry in entries if entry.serves(model)]
            if not serving:
                known = suggestion(model, {*served, *self.aliases})
                return ModelNotFound(f"model {model!r} is not served here.{known}", param="model")
            tasks = {task for entry in serving for task in entry.capabilities.supported_tasks}
            if demand.task not in tasks:
                return BadRequest(
                    f"model {model!r} does {', '.join(sorted(tasks))}, not {demand.task}", param="model"
                )
        if demand.permitted_types and any(
            self.unfit(entry, msgspec.structs.replace(link, permitted_types=frozenset()), target) is None
            for entry in entries
            if entry.type not in demand.permitted_types
            for link, target in self.links(demand)
        ):
            permitted = ", ".join(sorted(demand.permitted_types))
            return NotAllowed(f"no backend of a type that this key permits ({permitted}) can serve it now")
        if (unsupported := self._unsupported(demand, entries)) is not None:
            return unsupported
        reasons = "; ".join(
            f"{entry.backend_id}: {self.why_not(entry, demand) or 'tried already'}"
            for entry in entries[:REASONS]
        )
        more = f"; and {len(entries) - REASONS} more" if len(entries) > REASONS else ""
        return NoBackendAvailable(
            f"no backend can serve {demand.task}"
            + (f" with model {model!r}" if model else "")
            + f" now ({reasons + more or 'none is registered'})"
        )

    def _unsupported(self, demand: Demand, entries: list[Registered]) -> Unsupported | None:
        """The error where nobody lacks anything but a feature, drained or not."""
        links = self.links(demand)
        without = [(msgspec.structs.replace(link, features=frozenset()), target) for link, target in links]
        near = [entry for entry in entries if any(self.unfit(entry, *link) is None for link in without)]
        if not near or any(self.unfit(entry, *link) is None for entry in near for link in links):
            return None
        # What the one that comes closest is missing.
        missing = min((demand.features - entry.capabilities.features for entry in near), key=len)
        what = " and ".join(WORDS.get(feature, f"{feature!r}") for feature in sorted(missing))
        who = ", ".join(entry.backend_id for entry in near[:REASONS])
        return Unsupported(
            f"no backend that does {demand.model or demand.task} here takes {what} ({who}); leave it out, or "
            "choose another model",
            param=min(NAMES[feature] for feature in missing),
        )

    def _external_allowed(self, entry: Registered, demand: Demand) -> bool:
        if self.external_policy == "any":
            return True
        if self.external_policy == "never":
            return False
        return (
            demand.backend_id == entry.backend_id
            or entry.type in demand.preferred_types
            or (demand.model is not None and entry.names(demand.model))
        )

    def _search(self, demand: Demand) -> Eligible:
        tiers: list[Tier] = []
        closed: list[tuple[Registered, str | None]] = []
        for link, target in self.links(demand):
            fitting = [
                entry for entry in self._registry if entry.enabled and self.unfit(entry, link, target) is None
            ]
            let_in = _last_resort(fitting)
            ranks: list[list[Registered]] = [[] for _ in range(len(demand.preferred_types) + 1)]
            for entry in fitting:
                if entry.routable or entry in let_in:
                    ranks[_preference(entry, demand)].append(entry)
                elif entry.health.status is not BackendStatus.OFFLINE:
                    closed.append((entry, link.model))
            tiers += [Tier(tuple(members), link.model) for members in ranks if members]
        return Eligible(tuple(tiers), tuple(closed))


def _preference(entry: Registered, demand: Demand) -> int:
    try:
        return demand.preferred_types.index(entry.type)
    except ValueError:
        return len(demand.preferred_types)


def _last_resort(fitting: list[Registered]) -> list[Registered]:
    """Ejected backends that are let in all the same: never more than half of the candidates stay out.

    The only candidate stays out after faults in a row, but not on its rate of faults alone.
    """
    ejected = sorted(
        (entry for entry in fitting if entry.health.ejected),
        key=lambda entry: entry.health.breaker.opened_until,
    )
    if not ejected:
        return []
    if len(fitting) == 1:
        return ejected if ejected[0].health.breaker.by_rate else []
    return ejected[: max(0, len(ejected) - len(fitting) // 2)]
