"""How an MCP server is asked for inference: which tool does which task, with which arguments."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from uia_lab.access.commands import command_of, variables_of
from uia_lab.dialects.answer import as_text
from uia_lab.dialects.mcp import ROUTE
from uia_lab.domain.descriptions import BackendDescription
from uia_lab.domain.errors import BackendFailed, BadRequest, suggestion
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import AUDIO_TRANSCRIPTION, TEXT_GENERATION, canonical_task

OPTIONS = ("command", "environment", "tools", "side_effects", "external")
_FIELDS = ("tool", "arguments", "result", "stream")
_TEXTS = frozenset({TEXT_GENERATION, AUDIO_TRANSCRIPTION, "summarization", "translation"})
_PLACE = re.compile(r"\$(prompt|inputs|model|task|parameters)(?:\.(\w+))?")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """How one task is asked for.

    Args:
        tool: Name of the tool.
        arguments: Its arguments; a string such as ``$prompt`` stands for a part of the request.
        result: Where the answer is in the structured result, name by name; empty takes the text.
        stream: Whether the messages of its progress are pieces of the answer.
    """

    tool: str
    arguments: Mapping[str, Any]
    result: tuple[str, ...] = ()
    stream: bool = False

    def filled_in(self, request: InferenceRequest) -> dict[str, Any]:
        """The arguments for a request, without those that it has nothing for."""
        filled = {name: _filled(value, request) for name, value in self.arguments.items()}
        return {name: value for name, value in filled.items() if value is not None}

    def answer(self, task: str, text: str, structured: Any) -> Any:
        """The answer in a result.

        Raises:
            BackendFailed: It is not where the mapping says, or cannot be read.
        """
        if self.result:
            value = structured
            for name in self.result:
                if not isinstance(value, Mapping) or name not in value:
                    raise BackendFailed(f"the result of {self.tool} has no {'.'.join(self.result)}")
                value = value[name]
            return as_text(value) if task in _TEXTS else value
        if task in _TEXTS:
            return text
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError):
            raise BackendFailed(
                f"the text of {self.tool} is no JSON; name the field of its structured result in result"
            ) from None


ROUTED = ToolCall(
    ROUTE,
    {
        "task": "$task",
        "model": "$model",
        "inputs": "$inputs",
        "parameters": "$parameters",
    },
    ("result",),
    stream=True,
)
"""The tool of another uia_lab, and of whoever has one like it."""


@dataclass(frozen=True, slots=True)
class McpOptions:
    """The options of a backend of type MCP.

    Args:
        command: What starts the server, where it speaks over stdin and stdout.
        environment: Variables it gets besides the harmless ones.
        tools: How each task is asked for; empty where the server routes requests itself.
        side_effects: Whether a call may change the world; None: what the server says of its tools.
        external: Whether it leaves the machine, costs money or runs code; None: it does.
    """

    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, ToolCall] = field(default_factory=dict)
    side_effects: bool | None = None
    external: bool | None = None


def options_of(description: BackendDescription) -> McpOptions:
    """The options in a description.

    Raises:
        BadRequest: One of them is wrong; ``param`` names it.
    """
    given = description.options
    for name in given:
        if name not in OPTIONS:
            raise BadRequest(
                f"options.{name} is unknown.{suggestion(name, OPTIONS)}", param=f"options.{name}"
            )
    if description.endpoint is None and "command" not in given:
        raise BadRequest(
            "an MCP server has an endpoint (http://host:port/mcp) or options.command (a list of strings)",
            param="endpoint",
        )
    if description.endpoint is not None and "command" in given:
        raise BadRequest("give an endpoint or options.command, not both", param="options.command")
    if description.endpoint is not None and "environment" in given:
        raise BadRequest("options.environment is for a command; there is none", param="options.environment")
    command = command_of(given["command"], "options.command") if "command" in given else ()
    tools = dict(_tools(given.get("tools", {})))
    if tools and description.tasks is not None and set(description.tasks) != set(tools):
        raise BadRequest("tasks are those that options.tools says how to ask for", param="tasks")
    return McpOptions(
        command,
        variables_of(given.get("environment"), "options.environment"),
        tools,
        _flag(given, "side_effects"),
        _flag(given, "external"),
    )


def _flag(given: Mapping[str, Any], name: str) -> bool | None:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"options.{name} must be true or false", param=f"options.{name}")
    return value


def _tools(given: Any) -> Iterator[tuple[str, ToolCall]]:
    if not isinstance(given, Mapping):
        raise BadRequest('options.tools must be an object: {"text-generation": {...}}', param="options.tools")
    for task, fields in given.items():
        param = f"options.tools.{task}"
        if not isinstance(fields, Mapping):
            raise BadRequest(f"{param} must be an object with tool and arguments", param=param)
        for name in fields:
            if name not in _FIELDS:
                raise BadRequest(f"{param}.{name} is unknown.{suggestion(name, _FIELDS)}", param=param)
        tool, arguments, result = fields.get("tool"), fields.get("arguments") or {}, fields.get("result")
        if not isinstance(tool, str) or not tool:
            raise BadRequest(f"{param}.tool is missing: the name of the tool", param=param)
        if not isinstance(arguments, Mapping):
            raise BadRequest(f"{param}.arguments must be an object", param=param)
        for value in arguments.values():
            if isinstance(value, str) and value.startswith("$") and not _PLACE.fullmatch(value):
                raise BadRequest(
                    f"{param}.arguments: {value!r} is none of $prompt, $inputs, $model, $task, $parameters "
                    "and $parameters.NAME",
                    param=param,
                )
        if result is not None and (not isinstance(result, str) or not all(result.split("."))):
            raise BadRequest(f"{param}.result must be names with dots between them", param=param)
        if not isinstance(fields.get("stream", False), bool):
            raise BadRequest(f"{param}.stream must be true or false", param=param)
        path = tuple(result.split(".")) if result else ()
        yield (
            canonical_task(task),
            ToolCall(tool, dict(arguments), path, stream=bool(fields.get("stream", False))),
        )


def _filled(value: Any, request: InferenceRequest) -> Any:
    if not isinstance(value, str) or (place := _PLACE.fullmatch(value)) is None:
        return value
    name, parameter = place.groups()
    match name:
        case "prompt":
            return prompt_of(request)
        case "inputs":
            return request.inputs if request.messages is None else list(request.messages)
        case "parameters":
            return request.parameters.get(parameter) if parameter else dict(request.parameters)
        case _:
            return getattr(request, name)


def prompt_of(request: InferenceRequest) -> str:
    """The request as one text: its prompt, or the conversation with who said what."""
    if request.messages is None:
        return as_text(request.inputs)
    said = [(str(message.get("role")), _text(message.get("content"))) for message in request.messages]
    return said[0][1] if len(said) == 1 else "\n\n".join(f"{role}: {text}" for role, text in said)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content or ""
