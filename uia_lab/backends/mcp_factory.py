"""Builds the backend of an MCP server of what it is described by."""

import msgspec

from uia_lab.access.secrets import Secret, Secrets
from uia_lab.backends.client_session import SharedSession
from uia_lab.backends.mcp import McpBackend
from uia_lab.backends.mcp_link import McpLink, over_http, over_stdio
from uia_lab.backends.mcp_options import options_of
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BadRequest

MCP_CONCURRENCY = 32


def as_mcp(description: BackendDescription) -> BackendDescription:
    """The description with what it leaves open.

    Raises:
        BadRequest: A field is wrong; ``param`` names it.
    """
    if description.dialect is not None:
        raise BadRequest("dialect: an MCP server has none; see options.tools", param="dialect")
    name = description.name or description.id
    models = description.models
    if models is None and options_of(description).tools:
        # A tool has no models; this is how it is asked for.
        models = (name,)
    return msgspec.structs.replace(
        description,
        name=name,
        models=models,
        max_concurrency=description.max_concurrency or MCP_CONCURRENCY,
    )


def mcp_backend(
    description: BackendDescription, secrets: Secrets, session: SharedSession, instance_id: str
) -> McpBackend:
    """The backend of a complete description; nothing is started or opened yet.

    Args:
        description: What it is.
        secrets: Where its key is found, which goes into a header or, under its name, into the environment of
            the command.
        session: Carries requests over HTTP.
        instance_id: Our own name, for the guard against loops.

    Raises:
        BadRequest: An option is wrong; ``param`` names it.
    """
    options, name = options_of(description), description.api_key_env

    def key() -> Secret | None:
        return None if name is None else secrets.find(name)

    def variables() -> dict[str, str]:
        secret = key()
        return {
            **options.environment,
            **({name: secret.reveal()} if name is not None and secret is not None else {}),
        }

    if description.endpoint is not None:
        opener, what, protocol = over_http(description.endpoint, key, session), description.endpoint, "http"
    else:
        opener, what, protocol = over_stdio(options.command, variables), options.command[0], "stdio"
    return McpBackend(
        McpLink(opener, what),
        options,
        instance_id=instance_id,
        protocol=protocol,
        models=description.models,
        tasks=description.tasks,
    )
