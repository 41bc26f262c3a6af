"""An MCP server as a backend: its tools do inference."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from uia_lab.backends.inboxes import Inbox
from uia_lab.backends.mcp_link import McpLink
from uia_lab.backends.mcp_options import ROUTED, McpOptions, ToolCall
from uia_lab.dialects.mcp import SUPPORTED, call_meta, error_in
from uia_lab.dialects.websocket_answers import AnswerReader
from uia_lab.domain.backends import BackendCapabilities, BackendStatus, Probe
from uia_lab.domain.errors import BackendFailed, Cancelled, InferenceError, LoopDetected, Unsupported
from uia_lab.domain.events import Event, Finished, Started
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.domain.texts import one_line

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, Tool

INSTALL = "MCP backends need the package mcp: pip install 'uia-lab[mcp]'"


class McpBackend:
    """Asks the tools of one MCP server. Belongs to the loop of :meth:`start`.

    Args:
        link: The connection.
        options: Which tools, and how.
        instance_id: Our own name, which goes along so that no request runs in circles.
        protocol: ``http`` or ``stdio``.
        models: Models it is asked for; those it lists when absent.
        tasks: Tasks it is asked for; those it lists, or is mapped to, when absent.
    """

    def __init__(
        self,
        link: McpLink,
        options: McpOptions,
        *,
        instance_id: str,
        protocol: str,
        models: Iterable[str] | None = None,
        tasks: Iterable[str] | None = None,
    ) -> None:
        self._link = link
        self._options = options
        self._instance_id = instance_id
        self._protocol = protocol
        self._models = frozenset(models) if models is not None else None
        self._tasks = frozenset(options.tools or tasks or (TEXT_GENERATION, TEXT_EMBEDDING))
        self._narrowed = tasks is not None
        self._calls: set[asyncio.Task[None]] = set()
        self._tools: tuple[Client, dict[str, Tool]] | None = None

    def __repr__(self) -> str:
        return f"<McpBackend {self._protocol}>"

    @property
    def capabilities(self) -> BackendCapabilities:
        """What it is asked for, before the server has told."""
        return self._capabilities(self._tasks, self._models or frozenset(), side_effects=self._changes({}))

    async def start(self) -> None:
        """Connects; a server that is started here may take its time.

        Raises:
            BackendFailed: The server cannot be started or reached, or the SDK is not installed.
            Unauthenticated: It does not take the key.
        """
        try:
            await asyncio.to_thread(__import__, "mcp")
            # The SDK would import it, slowly and on the loop, at a tool's first answer.
            await asyncio.to_thread(__import__, "jsonschema")
        except ImportError:
            raise BackendFailed(INSTALL) from None
        self._link.closed = False
        await self._link.client()

    async def stop(self) -> None:
        """Closes the connection and ends the server that was started; running answers end with an error."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._link.close()

    async def probe(self) -> Probe:
        """Pings the server, and looks at its tools once a connection."""
        client = await self._link.client()
        await self._link.beat(client, busy=bool(self._calls))
        tools = await self._listed(client)
        wanted = {call.tool for call in self._options.tools.values()} or {ROUTED.tool}
        if missing := wanted - set(tools):
            there = ", ".join(sorted(tools)[:20]) or "none"
            hint = "" if self._options.tools else "; say in options.tools which of them does which task"
            return Probe(
                BackendStatus.UNHEALTHY, f"has no tool {', '.join(sorted(missing))}; its tools: {there}{hint}"
            )
        tasks, models = self._tasks, self._models or frozenset()
        if not self._options.tools and SUPPORTED in tools:
            tasks, models = await self._supported(client)
            if not tasks:
                return Probe(BackendStatus.UNHEALTHY, "connected, but no backend there can serve")
        who = client.server_info.name if client.server_info is not None else "a server without a name"
        return Probe(
            BackendStatus.HEALTHY,
            f"connected to {one_line(who)[:80]}, MCP {client.protocol_version}",
            models,
            self._capabilities(tasks, models, side_effects=self._changes(tools)),
        )

    async def infer(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """The answer of the tool that does the request's task."""
        call = self._options.tools.get(request.task) if self._options.tools else ROUTED
        if call is None:
            raise Unsupported(f"no tool is named for {request.task}", param="task")
        client = await self._link.client()
        inbox, reader = Inbox(), AnswerReader()
        # A task of its own: the SDK's waits are not to be cut by each deadline of a step.
        task = asyncio.create_task(self._call(client, call, request, inbox), name="uia-mcp-call")
        self._calls.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._calls.discard(task)
            # One that is cancelled before it begins says nothing itself.
            inbox.fail(BackendFailed("the connection was closed here"))

        task.add_done_callback(ended)
        try:
            yield Started("")
            while True:
                name, body = await inbox.get()
                for event in reader.feed(name, body):
                    yield event
                    if isinstance(event, Finished):
                        return
        finally:
            inbox.fail(Cancelled("the request has ended"))
            task.cancel()

    async def _call(self, client: "Client", call: ToolCall, request: InferenceRequest, inbox: Inbox) -> None:
        from mcp.shared.exceptions import MCPError

        pieces: list[str] = []

        async def told(progress: float, total: float | None, message: str | None) -> None:
            del progress, total
            if message and inbox.error is None:
                pieces.append(message)
                inbox.put(("chunk", {"chunk": message}), len(message))
                if inbox.full:
                    inbox.fail(Cancelled("the answer was read more slowly than it came"))

        streams = call.stream and request.task == TEXT_GENERATION
        try:
            result = await client.call_tool(
                call.tool,
                call.filled_in(request),
                progress_callback=told if streams else None,
                meta=call_meta((*request.via, self._instance_id)),  # type: ignore[arg-type]  # an open mapping
            )
            for name, body in _messages(call, request, result, "".join(pieces)):
                said = body.get("error")
                hidden = {"error": self._link.without_keys(said)} if isinstance(said, str) else {}
                inbox.put((name, {**body, **hidden}), 0)
        except InferenceError as error:
            inbox.fail(error)
        except MCPError as error:
            self._link.doubt(client)
            inbox.fail(self._failed(call, error.error.message))
        except Exception as error:  # noqa: BLE001 - what the SDK makes of a result that is none
            inbox.fail(self._failed(call, str(error)))

    def _failed(self, call: ToolCall, words: str) -> BackendFailed:
        return BackendFailed(f"{call.tool}: {one_line(self._link.without_keys(words))[:500]}")

    async def _listed(self, client: "Client") -> "dict[str, Tool]":
        if self._tools is None or self._tools[0] is not client:
            tools: dict[str, Tool] = {}
            cursor: str | None = None
            for _ in range(100):
                page = await client.list_tools(cursor=cursor)
                tools |= {tool.name: tool for tool in page.tools}
                if (cursor := page.next_cursor) is None:
                    break
            self._tools = client, tools
        return self._tools[1]

    async def _supported(self, client: "Client") -> tuple[frozenset[str], frozenset[str]]:
        """The tasks and models of another uia_lab that it is asked for.

        Raises:
            LoopDetected: It is this very one.
        """
        result = await client.call_tool(SUPPORTED, {}, meta=call_meta([self._instance_id]))  # type: ignore[arg-type]
        found = result.structured_content
        listed = found.get("tasks") if isinstance(found, Mapping) else None
        if result.is_error or not isinstance(listed, Mapping):
            raise BackendFailed(f"{SUPPORTED}: {_text(result)[:500] or 'its answer cannot be read'}")
        if found.get("instance_id") == self._instance_id:
            raise LoopDetected("it leads back to this very instance")
        tasks = {str(task) for task in listed if not self._narrowed or task in self._tasks}
        models = {str(model) for task in tasks for model in listed[task]}
        return frozenset(tasks), self._models or frozenset(models)

    def _changes(self, tools: "Mapping[str, Tool]") -> bool:
        """Whether a call may change the world: what was said, or what the tools say of themselves."""
        if self._options.side_effects is not None:
            return self._options.side_effects
        said = [tools.get(call.tool) for call in self._options.tools.values()]
        return any(
            tool is None or tool.annotations is None or not tool.annotations.read_only_hint for tool in said
        )

    def _capabilities(
        self, tasks: frozenset[str], models: frozenset[str], *, side_effects: bool
    ) -> BackendCapabilities:
        calls = self._options.tools.values() or (ROUTED,)
        return BackendCapabilities(
            supported_tasks=tasks,
            supported_models=models,
            # One that does not may take its time before it says anything.
            supports_streaming=all(call.stream for call in calls),
            protocols={"mcp", self._protocol},
            side_effects=side_effects,
            external=self._options.external,
        )


def _messages(
    call: ToolCall, request: InferenceRequest, result: "CallToolResult", said: str
) -> list[tuple[str, Mapping[str, Any]]]:
    """The rest of an answer, as the messages that AnswerReader knows.

    Raises:
        BackendFailed: The pieces that came are not the beginning of the answer.
    """
    if result.is_error:
        known = error_in(result.meta)
        text = _text(result) or "it failed and did not say why"
        return [("error", known if known is not None else {"error": f"{call.tool}: {text}"})]
    structured = result.structured_content
    value = call.answer(request.task, _text(result), structured)
    fields: Mapping[str, Any] = structured if isinstance(structured, Mapping) and call is ROUTED else {}
    end = {name: fields[name] for name in ("usage", "finish_reason", "finish_reasons") if name in fields}
    if not said:
        return [("result", {"result": value, **end})]
    if not isinstance(value, str) or not value.startswith(said):
        raise BackendFailed(f"the progress of {call.tool} is not the beginning of its answer")
    rest = value[len(said) :]
    return [*([("chunk", {"chunk": rest})] if rest else []), ("complete", end)]


def _text(result: "CallToolResult") -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")
