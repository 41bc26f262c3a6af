"""``python -m uia_lab mcp``: the tools of the MCP door over stdin and stdout.

Where the environment names a server (``UIA_LAB_URL`` and ``UIA_LAB_TOKEN``, as in a kernel), it speaks for
that server, with the rights of that token. Otherwise it runs a service of its own in this process, whose only
client is whoever started it.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from uia_lab._version import __version__
from uia_lab.access.principals import SCOPES, Principal
from uia_lab.config import InferenceServiceConfig
from uia_lab.dialects.mcp import quieten
from uia_lab.domain.errors import NoBackendAvailable, Unauthenticated

if TYPE_CHECKING:
    import mcp_types as types
    from mcp import Client
    from mcp.server.lowlevel import Server

ANSWER_S = 600.0
"""Seconds without a byte after which a server counts as dead; it says something every 15 s."""


async def serve_stdio(
    config: InferenceServiceConfig, url: str | None = None, token: str | None = None
) -> int:
    """Serves one client until it closes stdin, or a signal ends the process.

    Args:
        config: Settings of the service of its own.
        url: Address of the server to speak for; None for a service of its own.
        token: A key of that server, or a Jupyter token.

    Returns:
        The exit status.

    Raises:
        NoBackendAvailable: The server does not answer.
        Unauthenticated: It does not take the token.
    """
    from mcp.server.stdio import stdio_server

    quieten()
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)

    async def serve(server: "Server[Any]") -> None:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    async with AsyncExitStack() as stack:
        opened = _elsewhere(url, token) if url else _here(config)
        serving = asyncio.create_task(serve(await stack.enter_async_context(opened)), name="uia-mcp-stdio")
        told = asyncio.create_task(end.wait())
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if serving.done():
            serving.result()
    if not serving.done():
        # A thread reads stdin, and nothing but its end would wake it up.
        sys.stdout.flush()
        os._exit(0)
    return 0


@asynccontextmanager
async def _here(config: InferenceServiceConfig) -> AsyncIterator["Server[Any]"]:
    """The server over a service in this process."""
    from uia_lab.doors.mcp_server import ServiceServer
    from uia_lab.doors.mcp_tools import Caller
    from uia_lab.unified_inference_service import UnifiedInferenceService

    service = UnifiedInferenceService(config)
    try:
        await service.start(listen=False)
        answers = ServiceServer(service, Caller(Principal("local", SCOPES)))
        yield answers.server
        await answers.tools.close()
    finally:
        await service.stop()


@asynccontextmanager
async def _elsewhere(url: str, token: str | None) -> AsyncIterator["Server[Any]"]:
    """The server that asks the door of another one, in whatever revision each side speaks."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = url.rstrip("/") + "/mcp"
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            # A proxy of the environment would hear the token, which is for that server alone.
            httpx2.AsyncClient(
                headers=headers, timeout=httpx2.Timeout(ANSWER_S, connect=5.0), trust_env=False
            )
        )
        try:
            # Asked first in plain HTTP: the client would only say that there was an error.
            response = await http.get(address)
        except httpx2.TransportError as error:
            raise NoBackendAvailable(f"nobody answers at {url}: {error}") from None
        if response.status_code in (401, 403):
            raise Unauthenticated(f"{url} does not take the token; check UIA_LAB_TOKEN")
        if response.status_code in (404, 501):
            raise NoBackendAvailable(f"{url} has no MCP door: {response.text[:200]}")
        client = await stack.enter_async_context(
            Client(streamable_http_client(address, http_client=http, max_sse_event_size=None), cache=None)
        )
        yield _forwarding(client)


def _forwarding(client: "Client") -> "Server[Any]":
    from mcp.server.lowlevel import Server

    async def list_tools(_: Any, params: "types.PaginatedRequestParams | None") -> "types.ListToolsResult":
        return await client.list_tools(cursor=params.cursor if params else None)

    async def call_tool(context: Any, params: "types.CallToolRequestParams") -> "types.CallToolResult":
        wanted = (context.meta or {}).get("progress_token") is not None
        return await client.call_tool(
            params.name,
            params.arguments,
            progress_callback=context.session.report_progress if wanted else None,
            meta=_passed_on(context.meta),
        )

    async def list_resources(
        _: Any, params: "types.PaginatedRequestParams | None"
    ) -> "types.ListResourcesResult":
        return await client.list_resources(cursor=params.cursor if params else None)

    async def read_resource(_: Any, params: "types.ReadResourceRequestParams") -> "types.ReadResourceResult":
        return await client.read_resource(str(params.uri))

    return Server(
        "uia_lab",
        version=__version__,
        title="uia_lab",
        instructions=client.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
    )


def _passed_on(meta: Mapping[str, Any] | None) -> Any:
    """A call's ``_meta`` without what belongs to the connection it came by."""
    own = {
        name: value
        for name, value in (meta or {}).items()
        if name != "progress_token" and not name.startswith("io.modelcontextprotocol/")
    }
    return own or None
