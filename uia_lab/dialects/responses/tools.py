"""The kinds of tools that Responses have, as the functions that every backend with tools takes."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import encode, kind
from uia_lab.domain.errors import BadRequest, Unsupported

OWN = frozenset({"function", "custom", "namespace"})
"""Types of tools that the client runs itself and that are offered to the model."""
_LONGEST_NAME = 64
_FREE_TEXT = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The tool's input, as free text"}},
    "required": ["input"],
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the client knows it.

    Args:
        name: Its name.
        namespace: The namespace it is in.
        custom: Whether its input is free text, which backends write as the argument ``input``.
    """

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one call.

    Args:
        functions: What backends get, in the shape of chat completions.
        known: The client's tools by the names that backends know.
        wire: The tools in force as they came; those of OpenAI's own servers are not among them.
    """

    functions: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, Tool] = field(default_factory=dict)
    wire: list[dict[str, Any]] = field(default_factory=list)


def flat_name(name: str, namespace: Any = None) -> str:
    """The one name that backends without namespaces know a tool by."""
    if not isinstance(namespace, str) or not namespace:
        return name
    flat = namespace + name if namespace.endswith("__") else f"{namespace}__{name}"
    if len(flat) <= _LONGEST_NAME:
        return flat
    return f"{flat[: _LONGEST_NAME - 9]}_{hashlib.sha256(flat.encode()).hexdigest()[:8]}"


def offered(fields: Fields) -> Offer:
    """The tools of a call.

    Tools that run on OpenAI's own servers are left out where there are others: the codex CLI sends
    ``web_search`` along whether or not anybody can search. The answer's ``tools`` say what is in force.

    Raises:
        BadRequest: A tool of the wrong shape.
        Unsupported: There are only such tools.
    """
    offer = Offer()
    left_out: list[str] = []
    for index, tool in enumerate(fields.objects("tools") or ()):
        where = f"tools[{index}]."
        given = Fields(tool, where)
        match given.text("type", 64):
            case "function" | "custom":
                _add(offer, given, None)
            case "namespace":
                name = given.text("name", 256)
                for number, inner in enumerate(given.objects("tools") or ()):
                    _add(offer, Fields(inner, f"{where}tools[{number}]."), name)
            case None:
                raise BadRequest(f"{where}type is missing", param=f"{where}type")
            case other:
                left_out.append(other)
                continue
        offer.wire.append(tool)
    if left_out and not offer.wire:
        raise Unsupported(
            f"tools: {', '.join(sorted(set(left_out)))} run on OpenAI's own servers only; offer functions",
            param="tools",
        )
    return offer


def _add(offer: Offer, given: Fields, namespace: str | None) -> None:
    name = given.text("name", 256)
    if name is None:
        raise BadRequest(f"{given.prefix}name is missing", param=f"{given.prefix}name")
    custom = given.values.get("type") == "custom"
    function: dict[str, Any] = {"name": flat_name(name, namespace)}
    description = given.values.get("description")
    if custom:
        form = given.mapping("format") or {}
        grammar = form.get("definition")
        notes = [description, f"The input follows this grammar:\n{grammar}" if grammar else None]
        description = "\n\n".join(note for note in notes if isinstance(note, str) and note)
        function["parameters"] = _FREE_TEXT
    else:
        function["parameters"] = given.mapping("parameters") or {"type": "object", "properties": {}}
        if given.values.get("strict") is not None:
            function["strict"] = given.flag("strict")
    if isinstance(description, str) and description:
        function["description"] = description
    offer.functions.append({"type": "function", "function": function})
    offer.known[function["name"]] = Tool(name, namespace, custom)


def chosen(value: Any, offer: Offer) -> dict[str, Any]:
    """The parameters of chat completions for a ``tool_choice``; ``allowed_tools`` narrows the offer.

    Raises:
        BadRequest: It is none.
        Unsupported: It asks for a tool of OpenAI's own servers.
    """
    match value:
        case None:
            return {}
        case "auto" | "none" | "required":
            return {"tool_choice": value}
        case {"type": "function" | "custom", "name": str(name)}:
            flat = flat_name(name, value.get("namespace"))
            return {"tool_choice": {"type": "function", "function": {"name": flat}}}
        case {"type": "allowed_tools", "tools": list(tools)} if all(isinstance(it, dict) for it in tools):
            names = {flat_name(str(it.get("name")), it.get("namespace")) for it in tools}
            allowed = [it for it in offer.functions if it["function"]["name"] in names]
            if not allowed:
                raise BadRequest("tool_choice.tools names none of the tools", param="tool_choice")
            mode = "required" if value.get("mode") == "required" else "auto"
            return {"tool_choice": mode, "tools": allowed}
        case {"type": str(other)}:
            raise Unsupported(
                f"tool_choice: {kind(other)} runs on OpenAI's own servers only", param="tool_choice"
            )
    raise BadRequest(
        f"tool_choice must be auto, none, required or a tool, not {kind(value)}", param="tool_choice"
    )


def free_text(arguments: str) -> str:
    """The input of a custom tool, from the arguments a backend wrote; as they are where they are not JSON."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def as_arguments(text: str) -> str:
    """The input of a custom tool as the arguments of a function."""
    return encode({"input": text}).decode()
