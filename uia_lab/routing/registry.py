"""Who is registered, with the routing state of each."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from uia_lab.domain.backends import Backend, BackendCapabilities, BackendInfo, BackendMetrics, BackendType
from uia_lab.domain.errors import BadRequest
from uia_lab.routing.health import Health
from uia_lab.routing.stats import BackendStats

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


@dataclass(slots=True, eq=False)
class Registered:
    """One backend as the router knows it.

    ``in_flight`` counts leases only: taken when an attempt begins, given back once when it ends.
    """

    backend_id: str
    name: str
    type: BackendType
    instance: Backend
    original: Any
    capabilities: BackendCapabilities
    models: frozenset[str]
    external: bool
    endpoint: str | None
    metadata: Mapping[str, Any]
    weight: float
    max_concurrency: int | None
    registered_at: float
    enabled: bool = True
    in_flight: int = 0
    routable: bool = True
    health: Health = field(default_factory=Health)
    stats: BackendStats = field(default_factory=BackendStats)

    @property
    def free(self) -> bool:
        """Whether one more request may be sent there."""
        return (
            self.max_concurrency is None or self.in_flight < self.max_concurrency
        ) and self.health.breaker.admits

    def serves(self, model: str) -> bool:
        """Whether it serves a model: by name, by a pattern such as ``gpt-*``, or since it takes any."""
        return not self.models or self.names(model)

    def names(self, model: str) -> bool:
        """Whether one of its models, or a pattern of them, is this one."""
        return model in self.models or any(
            "*" in pattern and fnmatchcase(model, pattern) for pattern in self.models
        )

    def share(self, now: float) -> float:
        """Its weight, less while it starts slowly after a break."""
        return self.weight * self.health.breaker.strength(now)

    def metrics(self, now: float, wall: float, waiting: int) -> BackendMetrics:
        """The figures as a snapshot; arguments as for :meth:`info`."""
        checked = self.health.last_check
        return BackendMetrics(
            **self.stats.figures.to_dict(),  # type: ignore[arg-type]  # counters among them are whole numbers
            current_queue_size=waiting,
            active_connections=self.in_flight,
            models_loaded=getattr(self.instance, "models_loaded", None),
            uptime_seconds=now - self.registered_at,
            last_health_check=None if checked is None else wall - (now - checked),
        )

    def info(self, now: float, wall: float, waiting: int) -> BackendInfo:
        """A snapshot for people and reports.

        Args:
            now: Time on the router's clock, seconds.
            wall: The same moment as seconds since the epoch.
            waiting: Requests in the queue that this backend could serve.
        """
        reason = self.health.reason if self.enabled else "drained: no new requests"
        return BackendInfo(
            backend_id=self.backend_id,
            name=self.name,
            type=self.type,
            status=self.health.status,
            routable=self.routable and self.enabled,
            reason=reason,
            capabilities=self.capabilities,
            models=self.models,
            endpoint=self.endpoint,
            weight=self.weight,
            max_concurrency=self.max_concurrency,
            enabled=self.enabled,
            metrics=self.metrics(now, wall, waiting),
            by_model={name: figures.to_dict() for name, figures in self.stats.by_model.items()},
            metadata=self.metadata,
            instance=self.original,
        )


class Registry:
    """The registered backends, in the order of their registration.

    ``version`` grows with every change that may alter who is eligible.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Registered] = {}
        self.version = 0

    def __iter__(self) -> Iterator[Registered]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, backend_id: str) -> Registered | None:
        """The backend of that id, if there is one."""
        return self._entries.get(backend_id)

    def add(self, entry: Registered) -> Registered | None:
        """Registers a backend; one of the same id is replaced and returned.

        Raises:
            BadRequest: A field out of range, named in ``param``; nothing has changed then.
        """
        if not isinstance(entry.backend_id, str) or not _ID.fullmatch(entry.backend_id):
            raise BadRequest(
                f"backend_id {entry.backend_id!r} must be 1 to 128 letters, digits or ._:/@+-, "
                "the first a letter or digit",
                param="backend_id",
            )
        if not isinstance(entry.name, str) or not entry.name:
            raise BadRequest("name must be a non-empty string", param="name")
        check_weight(entry.weight)
        check_limit(entry.max_concurrency)
        old = self._entries.get(entry.backend_id)
        self._entries[entry.backend_id] = entry
        self.version += 1
        return old

    def remove(self, backend_id: str) -> Registered | None:
        """Takes a backend out; None if there was none."""
        self.version += 1
        return self._entries.pop(backend_id, None)

    def models(self) -> dict[str, set[str]]:
        """Model names that backends serve by name, with the tasks each is served for."""
        served: dict[str, set[str]] = {}
        for entry in self:
            for model in entry.models:
                served.setdefault(model, set()).update(entry.capabilities.supported_tasks)
        return served


def check_limit(limit: object) -> None:
    """Refuses a number of requests at once that is below 1; None is no bound.

    Raises:
        BadRequest: With ``param="max_concurrency"``.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise BadRequest(
            f"max_concurrency must be at least 1 or None, not {limit!r}", param="max_concurrency"
        )


def check_weight(weight: object) -> None:
    """Refuses a weight that is not a positive, finite number.

    Raises:
        BadRequest: With ``param="weight"``.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise BadRequest(f"weight must be a number above 0, not {weight!r}", param="weight")
