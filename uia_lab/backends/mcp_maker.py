"""Makes the backend of an MCP server of what it is described by."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from uia_lab.access.endpoints import EndpointPolicy
from uia_lab.access.secrets import Secret, Secrets, not_set
from uia_lab.backends.client_session import SharedSession
from uia_lab.backends.mcp import McpBackend
from uia_lab.backends.mcp_link import McpLink, over_http, over_stdio
from uia_lab.backends.mcp_options import McpOptions, options_of
from uia_lab.domain.backends import BackendType
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest, Unauthenticated, Unsupported

MCP_CONCURRENCY = 32


class McpMaker:
    """Knows what a description of type ``mcp`` stands for: an address, or a command that is started.

    Args:
        secrets: Where keys are found. One goes into a header or, under its name, into the environment of the
            command.
        endpoints: Which addresses may be called.
        session: Carries requests over HTTP.
        instance_id: Our own name, for the guard against loops.
        enabled: Whether MCP servers are taken at all.
    """

    def __init__(
        self,
        secrets: Secrets,
        endpoints: EndpointPolicy,
        session: SharedSession,
        instance_id: str,
        *,
        enabled: bool = True,
    ) -> None:
        self._secrets = secrets
        self._endpoints = endpoints
        self._session = session
        self._instance_id = instance_id
        self._enabled = enabled

    def stem(self, description: BackendDescription) -> str:
        """What an id begins with where nobody gave one."""
        command = description.options.get("command") or ("",)
        words = description.endpoint or f"//{Path(str(command[0])).stem}"
        try:
            return f"mcp-{urlsplit(words).netloc}"
        except ValueError:
            # What is wrong with such an address is said when it is looked at.
            return "mcp"

    async def complete(self, description: BackendDescription) -> BackendDescription:
        """The description with what it leaves open.

        Raises:
            BadRequest: A field is wrong; ``param`` names it.
            NotAllowed: The endpoint may not be called.
            Unauthenticated: The key it names is not there.
            Unsupported: MCP servers are switched off.
        """
        options = self._options(description)
        name = description.api_key_env
        if name is not None and await asyncio.to_thread(self._secrets.find, name) is None:
            raise Unauthenticated(not_set(name), param="api_key_env")
        title = description.name or description.id
        models = description.models
        if models is None and options.tools:
            # A tool has no models; this is how it is asked for.
            models = (title,)
        return msgspec.structs.replace(
            description,
            type=BackendType.MCP.value,
            name=title,
            endpoint=self._endpoint(description),
            models=models,
            max_concurrency=description.max_concurrency or MCP_CONCURRENCY,
        )

    def build(self, description: BackendDescription) -> McpBackend:
        """The backend of a complete description; nothing is started or opened yet.

        Raises:
            BadRequest: A field is wrong; ``param`` names it.
            NotAllowed: The endpoint may not be called.
            Unsupported: MCP servers are switched off.
        """
        options, name = self._options(description), description.api_key_env
        given: set[str] = set()

        def key() -> Secret | None:
            secret = None if name is None else self._secrets.find(name)
            if secret is not None:
                given.add(secret.reveal())
            return secret

        def without_keys(text: str) -> str:
            # Servers like to say which key they were given.
            for value in given:
                text = text.replace(value, "<key>")
            return text

        def variables() -> dict[str, str]:
            secret = key()
            own = {} if name is None or secret is None else {name: secret.reveal()}
            return {**options.environment, **own}

        endpoint = self._endpoint(description)
        if endpoint is not None:
            opener, what, protocol = over_http(endpoint, key, self._session), endpoint, "http"
        else:
            opener, what, protocol = (
                over_stdio(options.command, variables, without_keys),
                options.command[0],
                "stdio",
            )
        return McpBackend(
            McpLink(opener, what, without_keys),
            options,
            instance_id=self._instance_id,
            protocol=protocol,
            models=description.models,
            tasks=description.tasks,
        )

    async def close(self) -> None:
        """Nothing is open: each backend ends its own connection."""

    def _options(self, description: BackendDescription) -> McpOptions:
        if not self._enabled:
            raise Unsupported("MCP servers are not taken as backends here (enable_mcp)", param="type")
        if description.dialect is not None:
            raise BadRequest("dialect: an MCP server has none; see options.tools", param="dialect")
        return options_of(description)

    def _endpoint(self, description: BackendDescription) -> str | None:
        if description.endpoint is None:
            return None
        endpoint = self._endpoints.check(description.endpoint)
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise BadRequest(
                "the endpoint of an MCP server begins with http:// or https://", param="endpoint"
            )
        return endpoint
