"""The MCP server over a service: its tools and resources, for every transport."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import mcp_types as types
import msgspec
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from uia_lab._version import __version__
from uia_lab.access.principals import ADMIN, INFER, READ
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.mcp import error_meta, via_of
from uia_lab.domain.errors import BadRequest, InferenceError, suggestion
from uia_lab.doors.mcp_tools import Call, Caller, Tool, Tools

if TYPE_CHECKING:
    from uia_lab.unified_inference_service import UnifiedInferenceService

log = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Inference backends behind one router. get_supported_tasks says what can be asked for; "
    "route_inference_request runs a request on the best backend and moves it to another when one fails."
)
CALLER = "uia_caller"
"""Where the scope of an HTTP request has its caller."""
RECENT = 50
_RESOURCES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "uia://backends": ("backends", "Every backend with its status, tasks, models and metrics.", (READ,)),
    "uia://requests/recent": (
        "recent requests",
        "The latest requests, running ones first: who served them, how long they took, how they ended.",
        (READ, INFER),
    ),
}

Context = ServerRequestContext[Any, Any]


class ServiceServer:
    """Answers the messages of MCP clients.

    Args:
        service: What it speaks for.
        caller: Who calls, where the transport does not say.

    Attributes:
        server: The SDK's server, to be run over a transport.
        tools: The tools.
    """

    def __init__(self, service: "UnifiedInferenceService", caller: Caller | None = None) -> None:
        self._service = service
        self._caller = caller
        self.tools = Tools(service)
        self.server: Server[Any] = Server(
            "uia_lab",
            version=__version__,
            title="uia_lab",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_read_resource=self._read_resource,
        )

    def _who(self, context: Context) -> Caller:
        if context.request is not None:
            caller: Caller = context.request.scope[CALLER]
            return caller
        if self._caller is None:
            raise MCPError(types.INTERNAL_ERROR, "nobody is known to call")
        return self._caller

    async def _list_tools(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        del params
        who = self._who(context).principal
        allowed = [
            tool for tool in self.tools.table.values() if any(who.allows(scope) for scope in tool.scopes)
        ]
        return types.ListToolsResult(tools=[_described(tool) for tool in allowed])

    async def _call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = self.tools.table.get(params.name)
        if tool is None:
            known = suggestion(params.name, self.tools.table)
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name!r}.{known}")
        caller = self._who(context)
        meta: Mapping[str, Any] = context.meta or {}
        try:
            caller.principal.require(*tool.scopes)
            asked = _arguments(tool, params.arguments or {})
            via = (*caller.via, *via_of(meta))
            progress = context.session.report_progress

            async def tell(count: int, text: str) -> None:
                await progress(count, message=text)

            told = tell if meta.get("progress_token") is not None else None
            found = await tool.run(asked, Call(caller, via, told))
        except InferenceError as error:
            return types.CallToolResult(
                content=[types.TextContent(text=f"{error.code}: {error.message}")],
                is_error=True,
                _meta=error_meta(error),
            )
        except Exception:
            # The SDK would send the text of the exception.
            log.exception("unexpected error in the tool %s", tool.name)
            raise MCPError(types.INTERNAL_ERROR, "an internal error, which the server has logged") from None
        plain = found.model_dump(mode="json", exclude_none=True)
        return types.CallToolResult(
            content=[types.TextContent(text=encode(plain).decode())], structured_content=plain
        )

    async def _list_resources(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        del params
        who = self._who(context).principal
        return types.ListResourcesResult(
            resources=[
                types.Resource(uri=uri, name=name, description=about, mime_type="application/json")
                for uri, (name, about, scopes) in _RESOURCES.items()
                if any(who.allows(scope) for scope in scopes)
            ]
        )

    async def _read_resource(
        self, context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        if uri not in _RESOURCES:
            raise MCPError(
                types.INVALID_PARAMS, f"there is no resource {uri!r}.{suggestion(uri, _RESOURCES)}"
            )
        who = self._who(context).principal
        try:
            who.require(*_RESOURCES[uri][2])
            if uri == "uia://backends":
                manager = self._service.get_backend_manager()
                shown: Any = {"backends": [item.to_dict() for item in manager.list_backends()]}
            else:
                shown = {"requests": await self._recent(None if who.allows(ADMIN) else who.name)}
        except InferenceError as error:
            raise MCPError(types.INVALID_REQUEST, error.message) from None
        contents = types.TextResourceContents(
            uri=uri, mime_type="application/json", text=encode(shown).decode()
        )
        return types.ReadResourceResult(contents=[contents])

    async def _recent(self, owner: str | None) -> list[dict[str, Any]]:
        manager = self._service.get_backend_manager()
        now = manager.clock()
        records = [
            run.summary(manager.instance_id, now)
            for run in list(manager.running.values())
            if owner is None or run.request.principal == owner
        ]
        records.sort(key=lambda record: record.began_at, reverse=True)
        if (log := self._service.request_log) is not None:
            ended = await log.find(None, None, None, owner, RECENT)
            known = {record.id for record in ended}
            records = [record for record in records if record.id not in known] + ended
        return [
            {
                name: value
                for name, value in msgspec.to_builtins(record).items()
                # A list is to be read at a glance.
                if name not in ("decision", "inputs", "result")
            }
            for record in records[:RECENT]
        ]


def _described(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.arguments.model_json_schema(),
        output_schema=tool.result.model_json_schema(mode="serialization"),
        annotations=types.ToolAnnotations(
            read_only_hint=tool.read_only, destructive_hint=False, open_world_hint=not tool.read_only
        ),
    )


def _arguments(tool: Tool, given: Mapping[str, Any]) -> Any:
    try:
        return tool.arguments.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "arguments"
        known = suggestion(name, tool.arguments.model_fields) if first["type"] == "extra_forbidden" else ""
        raise BadRequest(f"{name}: {first['msg']}.{known}", param=name) from None
