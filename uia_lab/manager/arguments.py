"""What people pass to the manager, checked and brought into the domain's form."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from uia_lab.access.endpoints import is_loopback
from uia_lab.config import ConfigError, InferenceServiceConfig
from uia_lab.domain.backends import Backend, BackendCapabilities, BackendType, member
from uia_lab.domain.callables import CallableBackend
from uia_lab.domain.errors import BadRequest, suggestion
from uia_lab.domain.requests import InferenceRequest, Message, RoutingHints
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.routing.registry import Registered
from uia_lab.routing.router import Router

_KEYS = {
    "load_balancing": "load_balancing_strategy",
    "health_check_interval": "backend_health_check_interval",
    "enable_health_checks": "backend_health_checks",
}


def make_entry(
    backend_id: str,
    backend_type: BackendType | str,
    name: str,
    instance: Backend | Callable[..., Any],
    capabilities: BackendCapabilities | None,
    endpoint: str | None,
    metadata: Mapping[str, Any] | None,
    weight: float,
    max_concurrency: int | None,
    now: float,
) -> Registered:
    """The router's entry for what ``register_backend`` was given.

    Raises:
        BadRequest: A bad field, named in ``param``.
    """
    kind = member(BackendType, backend_type, "backend_type")
    if hasattr(instance, "infer") and not isinstance(instance, Backend):
        absent = [name for name in ("start", "stop", "probe") if not hasattr(instance, name)]
        raise BadRequest(f"an adapter with infer needs {', '.join(absent)} too", param="instance")
    adapter = instance if isinstance(instance, Backend) else CallableBackend(instance)
    given = capabilities if capabilities is not None else getattr(instance, "capabilities", None)
    if not isinstance(given, BackendCapabilities):
        raise BadRequest("capabilities must be BackendCapabilities", param="capabilities")
    if max_concurrency is None and isinstance(adapter, CallableBackend):
        # More than its threads would be refused there; here they wait in line.
        max_concurrency = adapter.most
    return Registered(
        backend_id=backend_id,
        name=name,
        type=kind,
        instance=adapter,
        original=instance,
        capabilities=given,
        models=frozenset(given.supported_models),
        external=_is_external(kind, given, endpoint, is_callable=isinstance(adapter, CallableBackend)),
        endpoint=_without_credentials(endpoint),
        metadata=dict(metadata or {}),
        weight=weight,
        max_concurrency=max_concurrency,
        registered_at=now,
    )


def example_request(
    task: str,
    model: str | None,
    preferred_types: Iterable[BackendType | str] | None,
    required_protocols: Iterable[str] | None,
    backend_id: str | None = None,
    *,
    stream: bool = True,
) -> InferenceRequest:
    """A request that stands for others of its kind, for ``select`` and ``explain``; it never runs."""
    hints = RoutingHints(
        preferred_types=_types(preferred_types),
        required_protocols=frozenset(required_protocols or ()),
        backend_id=backend_id,
    )
    return InferenceRequest(task, model, inputs="", routing=hints, stream=stream)


def make_request(
    task: str,
    model: str | None,
    inputs: Any,
    parameters: Mapping[str, Any] | None,
    messages: Sequence[Message] | None,
    hints: dict[str, Any],
    *,
    stream: bool,
) -> InferenceRequest:
    """The request that ``infer`` and ``stream`` were asked for.

    Raises:
        BadRequest: An unknown hint, or a bad field.
    """
    known = RoutingHints.__struct_fields__
    for name in hints:
        if name not in known:
            raise BadRequest(f"unknown hint {name!r}.{suggestion(name, known)}", param=name)
    if "preferred_types" in hints:
        hints["preferred_types"] = _types(hints["preferred_types"])
    if "required_protocols" in hints:
        hints["required_protocols"] = frozenset(hints["required_protocols"])
    return InferenceRequest(
        task,
        model,
        inputs,
        messages,
        parameters if parameters is not None else {},
        stream=stream,
        routing=RoutingHints(**hints),
    )


def _types(types: Iterable[BackendType | str] | None) -> tuple[BackendType, ...]:
    return tuple(member(BackendType, item, "preferred_types") for item in types or ())


def settings_of(config: Mapping[str, Any] | InferenceServiceConfig | None) -> InferenceServiceConfig:
    """The settings of a manager, given as a mapping with its short names or as a configuration.

    Raises:
        ConfigError: An unknown setting or a bad value.
    """
    if isinstance(config, InferenceServiceConfig):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"config must be a mapping or InferenceServiceConfig, not {type(config).__name__}")
    return InferenceServiceConfig(**{_KEYS.get(name, name): value for name, value in (config or {}).items()})


def configure_router(router: Router, settings: InferenceServiceConfig) -> None:
    """Applies the settings that are the router's, the strategy aside."""
    router.queue.size = settings.queue_size
    router.queue_timeout = settings.queue_timeout
    router.eligibility.external_policy = settings.external_policy
    router.eligibility.default_models = {
        TEXT_GENERATION: settings.default_model,
        TEXT_EMBEDDING: settings.default_embedding_model,
    }
    # The cached lists were made under the old policy and defaults.
    router.registry.version += 1


def setting_names(config: Mapping[str, Any] | InferenceServiceConfig) -> list[str]:
    """The settings a configuration speaks of: those named in a mapping, or all of them."""
    if isinstance(config, InferenceServiceConfig):
        return list(config.trait_names(config=True))
    return [_KEYS.get(name, name) for name in config]


def _without_credentials(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.username is None and parts.password is None:
        return endpoint
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_external(
    kind: BackendType, capabilities: BackendCapabilities, endpoint: str | None, *, is_callable: bool
) -> bool:
    """Whether a backend leaves the machine, costs money or runs code, where nobody said."""
    if capabilities.external is not None:
        return capabilities.external
    if kind in (BackendType.CLI, BackendType.MCP):
        return True
    if endpoint and urlsplit(endpoint).hostname:
        return not is_loopback(endpoint)
    return not is_callable and kind not in (BackendType.GPU, BackendType.WEBSOCKET)
