"""Who can serve a request, and why the others cannot."""

from collections.abc import Mapping
from dataclasses import dataclass

from uia_lab.domain.backends import BackendStatus, BackendType
from uia_lab.domain.errors import BadRequest, InferenceError, ModelNotFound, NoBackendAvailable, suggestion
from uia_lab.domain.requests import InferenceRequest
from uia_lab.routing.registry import Registered, Registry

CACHE_SIZE = 256


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs of a backend, and nothing else of it: the key of the cache."""

    task: str
    model: str | None
    backend_id: str | None
    preferred_types: tuple[BackendType, ...]
    required_protocols: frozenset[str]


@dataclass(frozen=True, slots=True)
class Eligible:
    """Backends that can serve a demand and are routable, in tiers of preference, best first.

    ``closed`` are those that can serve it but are not routable now.
    """

    tiers: tuple[tuple[Registered, ...], ...]
    closed: tuple[Registered, ...]

    @property
    def count(self) -> int:
        """How many are routable."""
        return sum(len(tier) for tier in self.tiers)


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
        self._cache: dict[Demand, Eligible] = {}
        self._version = -1

    def demand(self, request: InferenceRequest) -> Demand:
        """What the request needs; a request that names nothing gets the default local model.

        The default applies only where a backend serves it by name: a manager that has none of the
        local models takes whoever does the task.
        """
        hints = request.routing
        model = request.model
        if model is None and hints.backend_id is None and not hints.preferred_types:
            default = self.default_models.get(request.task)
            if default is not None and any(default in entry.models for entry in self._registry):
                model = default
        return Demand(request.task, model, hints.backend_id, hints.preferred_types, hints.required_protocols)

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

    def tier(self, entry: Registered, demand: Demand) -> int:
        """Which tier of preference the backend stands in; 0 is the best."""
        try:
            return demand.preferred_types.index(entry.type)
        except ValueError:
            return len(demand.preferred_types)

    def unfit(self, entry: Registered, demand: Demand) -> str | None:
        """Why the backend can never serve the demand as things stand; None if it can."""
        capabilities = entry.capabilities
        if demand.backend_id is not None and entry.backend_id != demand.backend_id:
            return f"not the backend asked for ({demand.backend_id})"
        if demand.task not in capabilities.supported_tasks:
            return f"task: does not do {demand.task}"
        if demand.model is not None and entry.models and demand.model not in entry.models:
            return f"model: does not serve {demand.model}"
        missing = demand.required_protocols - capabilities.protocols
        if missing:
            return f"protocols: does not speak {', '.join(sorted(missing))}"
        if entry.external and not self._external_allowed(entry, demand):
            return "external: not named" if self.external_policy == "named" else "external: never allowed"
        return None

    def closed(self, entry: Registered) -> str | None:
        """Why a backend that fits takes no request now; None if it does."""
        if not entry.enabled:
            return "drained: no new requests"
        if not entry.routable:
            return f"{entry.health.status.value}: {entry.health.reason}"
        return None

    def refusal(self, demand: Demand) -> InferenceError:
        """The error for a demand that nobody can serve now."""
        entries = list(self._registry)
        served = self._registry.models()
        if demand.backend_id is not None and self._registry.get(demand.backend_id) is None:
            known = suggestion(demand.backend_id, (entry.backend_id for entry in entries))
            return BadRequest(f"no backend {demand.backend_id!r} is registered.{known}", param="backend_id")
        fitting = [entry for entry in entries if self.unfit(entry, demand) is None]
        if demand.model is not None and not fitting:
            takes_any = any(not entry.models for entry in entries)
            if demand.model not in served and not takes_any:
                return ModelNotFound(
                    f"model {demand.model!r} is not served here.{suggestion(demand.model, served)}",
                    param="model",
                )
            tasks = served.get(demand.model)
            if tasks and demand.task not in tasks:
                return BadRequest(
                    f"model {demand.model!r} does {', '.join(sorted(tasks))}, not {demand.task}",
                    param="model",
                )
        reasons = "; ".join(
            f"{entry.backend_id}: {self.unfit(entry, demand) or self.closed(entry) or 'tried already'}"
            for entry in entries[:10]
        )
        return NoBackendAvailable(
            f"no backend can serve {demand.task}"
            + (f" with model {demand.model!r}" if demand.model else "")
            + f" now ({reasons or 'none is registered'})"
        )

    def _external_allowed(self, entry: Registered, demand: Demand) -> bool:
        if self.external_policy == "any":
            return True
        if self.external_policy == "never":
            return False
        return (
            demand.backend_id == entry.backend_id
            or entry.type in demand.preferred_types
            or (demand.model is not None and demand.model in entry.models)
        )

    def _search(self, demand: Demand) -> Eligible:
        tiers: list[list[Registered]] = [[] for _ in range(len(demand.preferred_types) + 1)]
        closed: list[Registered] = []
        for entry in self._registry:
            if self.unfit(entry, demand) is not None:
                continue
            if self.closed(entry) is None:
                tiers[self.tier(entry, demand)].append(entry)
            elif entry.enabled and entry.health.status is not BackendStatus.OFFLINE:
                closed.append(entry)
        return Eligible(tuple(tuple(tier) for tier in tiers if tier), tuple(closed))
