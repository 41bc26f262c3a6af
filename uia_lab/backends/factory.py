"""Builds a backend of what it is described by."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secret, Secrets, not_set
from uia_lab.backends.client_session import SharedSession
from uia_lab.backends.http import HttpBackend
from uia_lab.backends.hybrid_maker import HybridMaker
from uia_lab.backends.providers import COMPATIBLE, PROVIDERS, Provider, provider_at, provider_named
from uia_lab.backends.recognise import Recognised, recognise
from uia_lab.backends.websocket import WebSocketBackend
from uia_lab.config import InferenceServiceConfig
from uia_lab.dialects.registry import UPSTREAM_DIALECTS, upstream_dialect
from uia_lab.domain.backends import Backend, BackendType, member
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed, BadRequest, Unauthenticated, Unsupported, suggestion

# Our own messages, those of `/ws`.
SOCKET_DIALECT = "uia"
SOCKET_CONCURRENCY = 32
_SCHEMES = {BackendType.API: ("http", "https"), BackendType.WEBSOCKET: ("ws", "wss", "http", "https")}
_OPTIONS = ("provider", "headers", "query", "body")
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-goog-api-key"}
)
_SECRET_QUERY = frozenset({"access_token", "api-key", "api_key", "apikey", "key", "token"})


def secrets_of(config: InferenceServiceConfig) -> Secrets:
    """Where a service with these settings finds the keys of its backends."""
    variables = {name for provider in PROVIDERS.values() for name in provider.keys}
    return Secrets(config.api_key_files, variables=variables | set(config.api_key_variables))


class Maker(Protocol):
    """Makes the backends of one kind that is not known by an address."""

    def stem(self, description: BackendDescription) -> str:
        """What an id begins with where nobody gave one."""

    async def complete(self, description: BackendDescription) -> BackendDescription:
        """The description with what it leaves open."""

    def build(self, description: BackendDescription) -> Backend:
        """The backend of a complete description; nothing is asked or opened yet."""

    async def close(self) -> None:
        """Ends what it has under way."""


class BackendFactory:
    """Knows the kinds of backend that are described in words, and owns what they share.

    Args:
        secrets: Where keys are found.
        endpoints: Which addresses may be called.
        instance_id: Our own name, for the guard against loops.

    Attributes:
        makers: Who makes the kinds that are not known by an address.
    """

    def __init__(self, secrets: Secrets, endpoints: EndpointPolicy, instance_id: str) -> None:
        self.secrets = secrets
        self.endpoints = endpoints
        self.instance_id = instance_id
        self.session = SharedSession(endpoints)
        self.makers: dict[str, Maker] = {BackendType.HYBRID: HybridMaker(self)}

    async def complete(self, description: BackendDescription) -> BackendDescription:
        """The description with what it leaves open: base URL, dialect, tasks, key, concurrency.

        Models that it leaves open stay so: what the endpoint lists is looked up by each probe.

        Raises:
            BadRequest: A field is wrong; ``param`` names it.
            NotAllowed: The endpoint may not be called.
            NoBackendAvailable: Nobody answers there.
            Unauthenticated: A key is needed that is not there.
            BackendFailed: What answers is no known server; the message says what was tried.
        """
        if (maker := self.makers.get(description.type)) is not None:
            return await maker.complete(description)
        endpoint = self._endpoint(description)
        if description.type == BackendType.WEBSOCKET:
            await self._secret(description.api_key_env)
            return _as_socket(description, endpoint)
        _check_options(description.options)
        for task in description.tasks or ():
            if task not in (known := {task for item in PROVIDERS.values() for task in item.tasks}):
                raise BadRequest(
                    f"tasks: {task!r} is not done by APIs.{suggestion(task, known)}", param="tasks"
                )
        provider = _named(description) or provider_at(endpoint)
        key = description.api_key_env
        if provider is not None and provider_at(endpoint) is provider and key is None and provider.keys:
            # Only at the provider's own host: elsewhere a key goes where somebody sent it by name.
            key = await self.first_key(provider)
        secret = await self._secret(key)
        tasks: tuple[str, ...] = ()
        if provider is None:
            auth = {"Authorization": f"Bearer {secret.reveal()}"} if secret is not None else {}
            try:
                found = await recognise(await self.session.get(), endpoint, auth)
            except BackendFailed:
                if description.dialect is None:
                    raise
                found = Recognised(COMPATIBLE, endpoint)
            provider, endpoint, tasks = found.provider, found.endpoint, found.tasks
        elif not urlsplit(endpoint).path:
            endpoint += urlsplit(provider.base_url).path if provider.base_url else provider.prefix
        dialect = description.dialect if description.dialect in UPSTREAM_DIALECTS else provider.dialect
        carried = upstream_dialect(dialect).tasks
        return msgspec.structs.replace(
            description,
            type=BackendType.API.value,
            name=description.name or description.id,
            endpoint=endpoint,
            dialect=dialect,
            tasks=description.tasks or tasks or tuple(sorted(provider.tasks & carried)),
            api_key_env=key,
            max_concurrency=description.max_concurrency or provider.concurrency,
            options={**description.options, "provider": provider.name},
        )

    def build(self, description: BackendDescription) -> Backend:
        """The backend of a complete description; nothing is asked or opened yet.

        Raises:
            BadRequest: A field is wrong; ``param`` names it.
            NotAllowed: The endpoint may not be called.
        """
        if (maker := self.makers.get(description.type)) is not None:
            return maker.build(description)
        endpoint = self._endpoint(description)
        if description.type == BackendType.WEBSOCKET:
            return self._socket(_as_socket(description, endpoint))
        _check_options(description.options)
        provider = _named(description) or provider_at(endpoint) or COMPATIBLE
        dialect = description.dialect if description.dialect in UPSTREAM_DIALECTS else provider.dialect
        return HttpBackend(
            msgspec.structs.replace(description, endpoint=endpoint),
            provider,
            upstream_dialect(dialect),
            self.session,
            self.secrets,
            self.instance_id,
        )

    async def first_key(self, provider: Provider) -> str:
        """Name of the provider's key that is set.

        Raises:
            Unauthenticated: None of them is.
        """
        for name in provider.keys:
            if await self._found(name) is not None:
                return name
        raise Unauthenticated(
            f"{provider.title} wants a key: set {' or '.join(provider.keys)}, or name another in api_key_env",
            param="api_key_env",
        )

    async def close(self) -> None:
        """Closes the connections of every backend it built."""
        for maker in self.makers.values():
            await maker.close()
        await self.session.close()

    def _endpoint(self, description: BackendDescription) -> str:
        kind = member(BackendType, description.type, "type")
        if kind not in _SCHEMES:
            raise Unsupported(
                f"a backend of type {description.type!r} is not built of a description", param="type"
            )
        if not description.endpoint:
            raise BadRequest("endpoint is missing: http://host:port", param="endpoint")
        endpoint = self.endpoints.check(description.endpoint)
        if urlsplit(endpoint).scheme not in _SCHEMES[kind]:
            schemes = " or ".join(f"{scheme}://" for scheme in _SCHEMES[kind])
            raise BadRequest(
                f"the endpoint of a backend of type {kind} begins with {schemes}", param="endpoint"
            )
        return endpoint

    def _socket(self, description: BackendDescription) -> WebSocketBackend:
        name = description.api_key_env
        return WebSocketBackend(
            description.endpoint or "",
            None if name is None else (lambda: self.secrets.find(name)),
            instance_id=self.instance_id,
            models=description.models,
            tasks=description.tasks,
            policy=self.endpoints,
        )

    async def _secret(self, name: str | None) -> Secret | None:
        if name is None:
            return None
        found = await self._found(name)
        if found is None:
            raise Unauthenticated(not_set(name), param="api_key_env")
        return found

    async def _found(self, name: str) -> Secret | None:
        return await asyncio.to_thread(self.secrets.find, name)


def _as_socket(description: BackendDescription, endpoint: str) -> BackendDescription:
    if description.dialect not in (None, SOCKET_DIALECT):
        raise BadRequest(
            f"dialect: a WebSocket speaks {SOCKET_DIALECT!r} here, not {description.dialect!r}",
            param="dialect",
        )
    if description.options:
        raise BadRequest("options: a WebSocket has none", param="options")
    return msgspec.structs.replace(
        description,
        name=description.name or description.id,
        endpoint=endpoint,
        dialect=SOCKET_DIALECT,
        max_concurrency=description.max_concurrency or SOCKET_CONCURRENCY,
    )


def _named(description: BackendDescription) -> Provider | None:
    """The provider that a description names, outright or by what only one of them speaks."""
    if (name := description.options.get("provider")) is not None:
        return provider_named(str(name), "options.provider")
    dialect = description.dialect
    if dialect is None:
        return None
    speakers = [provider for provider in PROVIDERS.values() if provider.dialect == dialect]
    if dialect in UPSTREAM_DIALECTS:
        return speakers[0] if len(speakers) == 1 else None
    return provider_named(dialect, "dialect")


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise BadRequest(
                f"options.{name} is unknown.{suggestion(name, _OPTIONS)}", param=f"options.{name}"
            )
        if name == "provider":
            continue
        if not isinstance(value, Mapping):
            raise BadRequest(f"options.{name} must be an object", param=f"options.{name}")
        if name in ("headers", "query") and not all(isinstance(item, str) for item in value.values()):
            raise BadRequest(f"options.{name} must be an object of strings", param=f"options.{name}")
        if name == "query" and (secret := _SECRET_QUERY & {item.lower() for item in value}):
            raise BadRequest(
                f"options.query must not hold {', '.join(sorted(secret))}: addresses end up in logs; "
                "put the key into an environment variable and name that in api_key_env",
                param="options.query",
            )
        if name == "headers" and (secret := _SECRET_HEADERS & {header.lower() for header in value}):
            raise BadRequest(
                f"options.headers must not hold {', '.join(sorted(secret))}: it would be kept as it is; "
                "put the key into an environment variable and name that in api_key_env",
                param="options.headers",
            )
