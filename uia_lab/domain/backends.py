"""What a backend is: its kind, status, capabilities, metrics, and the protocol an adapter follows."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.tasks import canonical_task

if TYPE_CHECKING:
    from uia_lab.domain.events import Event
    from uia_lab.domain.requests import InferenceRequest

E = TypeVar("E", bound=StrEnum)


class BackendType(StrEnum):
    """The seven kinds of backend."""

    GPU = "gpu"
    API = "api"
    CLI = "cli"
    P2P = "p2p"
    WEBSOCKET = "websocket"
    MCP = "mcp"
    HYBRID = "hybrid"


class BackendStatus(StrEnum):
    """How a backend is; only a probe or a real success makes it HEALTHY."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    OFFLINE = "offline"
    INITIALIZING = "initializing"
    UNKNOWN = "unknown"


def member(enum: type[E], value: E | str, param: str) -> E:
    """The member of an enum given by itself or by its value.

    Raises:
        BadRequest: Not a member; the message lists the values.
    """
    try:
        return enum(value.lower() if isinstance(value, str) else value)
    except (ValueError, AttributeError):
        raise BadRequest(
            f"{param}: {value!r} is none of {', '.join(item.value for item in enum)}", param=param
        ) from None


_SETS = ("supported_tasks", "supported_models", "hardware_types", "protocols", "features")
_FLAGS = ("supports_streaming", "supports_batching", "resume", "side_effects")


@dataclass(frozen=True, slots=True)
class BackendCapabilities:
    """What a backend can do.

    Args:
        supported_tasks: Task names or aliases; canonical once constructed.
        supported_models: Model names; the empty set takes any model.
        max_batch_size: Largest batch it takes in one call.
        supports_streaming: Whether it sends the answer in pieces.
        supports_batching: Whether it takes several inputs in one call.
        hardware_types: For example ``{"cuda"}``.
        protocols: For example ``{"http", "websocket"}``.
        features: For example ``{"tools", "vision", "response_format", "logprobs", "seed"}``.
        context_length: Tokens of prompt and answer together, if known.
        price: Money per million tokens, ``{"input": .., "output": ..}``, if known.
        resume: Whether it continues prompt + text so far exactly.
        side_effects: Whether a call may change the world; never retried once started.
        external: Whether it leaves the machine, costs money or runs code; None: judged at registration.
        model_digest: Digest of the weights a model name stands for, by model name.

    Raises:
        BadRequest: A field of the wrong type; ``param`` names it.
    """

    supported_tasks: frozenset[str] | set[str]
    supported_models: frozenset[str] | set[str] = frozenset()
    max_batch_size: int = 1
    supports_streaming: bool = False
    supports_batching: bool = False
    hardware_types: frozenset[str] | set[str] = frozenset()
    protocols: frozenset[str] | set[str] = frozenset()
    features: frozenset[str] | set[str] = frozenset()
    context_length: int | None = None
    price: Mapping[str, float] | None = None
    resume: bool = False
    side_effects: bool = False
    external: bool | None = None
    model_digest: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _SETS:
            value = getattr(self, name)
            if not isinstance(value, (set, frozenset, list, tuple)) or not all(
                isinstance(item, str) for item in value
            ):
                raise BadRequest(f"{name} must be a set of strings, not {value!r}", param=name)
            object.__setattr__(self, name, frozenset(value))
        object.__setattr__(
            self, "supported_tasks", frozenset(canonical_task(task) for task in self.supported_tasks)
        )
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise BadRequest(f"{name} must be True or False, not {getattr(self, name)!r}", param=name)
        if self.external is not None and not isinstance(self.external, bool):
            raise BadRequest(f"external must be True, False or None, not {self.external!r}", param="external")
        for name, value in (("max_batch_size", self.max_batch_size), ("context_length", self.context_length)):
            if value is None and name == "context_length":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest(f"{name} must be a whole number of at least 1, not {value!r}", param=name)
        for name, mapping in (("price", self.price or {}), ("model_digest", self.model_digest)):
            if not isinstance(mapping, Mapping):
                raise BadRequest(f"{name} must be a mapping, not {mapping!r}", param=name)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a free look at a backend found.

    Args:
        status: How it is.
        reason: Why, in words a person reads.
        models: Models it serves now; None where it cannot tell.
        capabilities: What it can do, where the probe learnt better than the registration.
        load: Requests it says it works on, if it says so.
    """

    status: BackendStatus
    reason: str = ""
    models: frozenset[str] | None = None
    capabilities: BackendCapabilities | None = None
    load: int | None = None


@runtime_checkable
class Backend(Protocol):
    """What an adapter offers the manager. It decides nothing and sets no deadlines.

    ``infer`` yields :class:`Started` first (``backend_id`` and ``attempt`` are filled in by the manager),
    then chunks, then :class:`Finished`; closing the iterator ends the work outside. No timeout and no task
    group is held across a ``yield``.
    """

    async def start(self) -> None:
        """Gets ready to serve; called once before the first probe or request."""

    async def stop(self) -> None:
        """Closes everything; running answers end with an error."""

    async def probe(self) -> Probe:
        """Looks how the backend is, free of charge: it never runs inference."""

    def infer(self, request: "InferenceRequest") -> AsyncIterator["Event"]:
        """The answer's events."""


@runtime_checkable
class Relayable(Protocol):
    """A backend that may answer in bytes of the caller's own dialect."""

    def relays(self, request: "InferenceRequest") -> bool:
        """Whether it would pass on this request and its answer without translation."""


@dataclass(frozen=True, slots=True)
class BackendMetrics:
    """Counters and figures of one backend; counters count attempts, None has no meaning yet."""

    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    cancelled_requests: int = 0
    rejected_requests: int = 0
    average_latency_ms: float | None = None
    p50_latency_ms: float | None = None
    p95_latency_ms: float | None = None
    p99_latency_ms: float | None = None
    time_to_first_token_ms: float | None = None
    tokens_per_second: float | None = None
    current_queue_size: int = 0
    active_connections: int = 0
    models_loaded: int | None = None
    uptime_seconds: float = 0.0
    last_health_check: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0

    def to_dict(self) -> dict[str, float]:
        """The figures that have a meaning, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A snapshot of one registered backend.

    Args:
        backend_id: Its id.
        name: Its name for people.
        type: Its kind.
        status: How it is.
        routable: Whether requests may go there now.
        reason: Why it is in this status, in words.
        capabilities: What it can do.
        models: Models it serves; empty takes any.
        endpoint: Where it is, without credentials.
        weight: Share of traffic against its peers.
        max_concurrency: Requests at once; None for no bound.
        enabled: False after ``drain``.
        metrics: Counters and figures.
        by_model: The figures of each model at it, by the metrics' names.
        metadata: Free-form facts of whoever registered it.
        instance: The object registered.
    """

    backend_id: str
    name: str
    type: BackendType
    status: BackendStatus
    routable: bool
    reason: str
    capabilities: BackendCapabilities
    models: frozenset[str]
    endpoint: str | None
    weight: float
    max_concurrency: int | None
    enabled: bool
    metrics: BackendMetrics
    by_model: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    instance: Any = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        """The backend's id."""
        return self.backend_id

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form that the status report lists."""
        return {
            "id": self.backend_id,
            "name": self.name,
            "type": self.type.value,
            "status": self.status.value,
            "routable": self.routable,
            "reason": self.reason,
            "endpoint": self.endpoint,
            "tasks": sorted(self.capabilities.supported_tasks),
            "models": sorted(self.models),
            "protocols": sorted(self.capabilities.protocols),
            "hardware_types": sorted(self.capabilities.hardware_types),
            "weight": self.weight,
            "max_concurrency": self.max_concurrency,
            "price": dict(self.capabilities.price) if self.capabilities.price is not None else None,
            "enabled": self.enabled,
            "metrics": self.metrics.to_dict(),
            "by_model": {name: dict(figures) for name, figures in self.by_model.items()},
        }
