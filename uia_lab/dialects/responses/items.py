"""The items of Responses as chat messages, and chat messages as items."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import kind
from uia_lab.dialects.responses.tools import as_arguments, flat_name
from uia_lab.domain.errors import BadRequest, Unsupported
from uia_lab.domain.requests import Message

_ROLES = ("user", "assistant", "system", "developer")
# What tools of OpenAI's own servers did; the messages beside them say what came of it.
_SKIPPED = frozenset(
    {
        "additional_tools",
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def messages(instructions: str | None, given: Any) -> list[dict[str, Any]]:
    """The chat messages of a call.

    Args:
        instructions: The field of that name.
        given: The field ``input``: a string or a list of items.

    Raises:
        BadRequest: One of the wrong shape; ``param`` names it.
        Unsupported: An item that needs what only OpenAI's own servers keep or do.
    """
    found: list[dict[str, Any]] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    if given is None:
        raise BadRequest("input is missing", param="input")
    if not isinstance(given, list) or not given:
        raise BadRequest("input must be a string or a list with at least one item", param="input")
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise BadRequest(f"{where} must be an object, not {kind(item)}", param=where)
        _take(found, item, where)
    # Reasoning that nothing followed has nothing to stand beside.
    found = [it for it in found if it["role"] != "assistant" or it["content"] or "tool_calls" in it]
    if not found:
        raise BadRequest("input has nothing to answer", param="input")
    return _with_one_head(found)


def _with_one_head(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The instructions before the conversation as one message: the templates of many models take no more."""
    head = list(itertools.takewhile(lambda it: it["role"] in ("system", "developer"), found))
    if len(head) < 2 or not all(isinstance(it["content"], str) for it in head):
        return found
    return [{"role": "system", "content": "\n\n".join(it["content"] for it in head)}, *found[len(head) :]]


def _take(found: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    fields = Fields(item, where + ".")
    match item.get("type", "message" if "role" in item else None):
        case "message":
            role = item.get("role")
            if role not in _ROLES:
                raise fields.wrong("role", f"one of {', '.join(_ROLES)}")
            parts = _parts(item.get("content"), f"{where}.content")
            if role != "assistant":
                found.append({"role": role, "content": _content(parts)})
                return
            text = "".join(part.get("text", "") for part in parts)
            if not _open(found) or found[-1]["content"] or "tool_calls" in found[-1]:
                found.append({"role": "assistant", "content": text})
            else:
                found[-1]["content"] = text
        case "function_call" | "custom_tool_call":
            _call(found, fields, custom=item["type"] == "custom_tool_call")
        case str(name) if name in _OUTPUTS:
            call = fields.text("call_id", 256)
            if call is None:
                raise BadRequest(f"{where}.call_id is missing", param=f"{where}.call_id")
            parts = _parts(item.get("output"), f"{where}.output")
            text = "\n".join(part["text"] for part in parts if part["type"] == "text")
            found.append({"role": "tool", "tool_call_id": call, "content": text})
            # A tool's message is text only; what else it gave is shown to the model behind it.
            if others := [part for part in parts if part["type"] != "text"]:
                found.append({"role": "user", "content": others})
        case "reasoning":
            text = "\n".join(
                part["text"]
                for part in [*(fields.objects("summary") or ()), *(fields.objects("content") or ())]
                if isinstance(part.get("text"), str)
            )
            if text:
                found.append({"role": "assistant", "content": None, "reasoning_content": text})
        case str(name) if name in _SKIPPED:
            pass
        case other:
            raise Unsupported(
                f"{where}.type: {kind(other)} is not taken here; this server keeps no responses and runs no "
                "tools of its own",
                param=f"{where}.type",
            )


def _open(found: list[dict[str, Any]]) -> bool:
    return bool(found) and found[-1]["role"] == "assistant"


def _call(found: list[dict[str, Any]], fields: Fields, *, custom: bool) -> None:
    call, name = fields.text("call_id", 256), fields.text("name", 256)
    if call is None or name is None:
        raise BadRequest(f"{fields.prefix[:-1]} needs call_id and name", param=fields.prefix[:-1])
    given = fields.values.get("input" if custom else "arguments")
    if not isinstance(given, str):
        raise fields.wrong("input" if custom else "arguments", "a string")
    if not _open(found):
        found.append({"role": "assistant", "content": None})
    function = {
        "name": flat_name(name, fields.values.get("namespace")),
        "arguments": as_arguments(given) if custom else given,
    }
    calls = found[-1].setdefault("tool_calls", [])
    calls.append({"id": call, "type": "function", "function": function})


def _content(parts: list[dict[str, Any]]) -> Any:
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise BadRequest(f"{where} must be a string or a list of parts, not {kind(content)}", param=where)
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, Any]:
    match part:
        case {"type": "input_text" | "output_text" | "text" | "summary_text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            image = {"url": url}
            if isinstance(detail := part.get("detail"), str):
                image["detail"] = detail
            return {"type": "image_url", "image_url": image}
        case {"type": "input_file", "file_data": str(data)}:
            name = part.get("filename")
            return {"type": "file", "file": {"filename": name or "file.pdf", "file_data": data}}
        case {"type": "input_audio", "input_audio": dict(audio)}:
            return {"type": "input_audio", "input_audio": audio}
        case {"type": "input_image" | "input_file"}:
            raise Unsupported(f"{where}: send the data itself; no files are kept here", param=where)
        case {"type": str(other)}:
            raise BadRequest(f"{where} of type {kind(other)} is unknown or lacks its content", param=where)
    raise BadRequest(f"{where} must be an object with a type", param=where)


def items(chat: Sequence[Message]) -> list[dict[str, Any]]:
    """Chat messages as the field ``input``.

    Raises:
        BadRequest: A tool call without a name.
        Unsupported: A part this dialect has no form for.
    """
    found: list[dict[str, Any]] = []
    for index, message in enumerate(chat):
        where = f"messages[{index}]"
        role, content = message.get("role"), message.get("content")
        if role in ("tool", "function"):
            call = str(message.get("tool_call_id") or message.get("name") or "")
            output = content if isinstance(content, str) else _given(content, where)
            found.append({"type": "function_call_output", "call_id": call, "output": output})
            continue
        if content:
            kept = content if isinstance(content, str) else _given(content, where, said=role == "assistant")
            found.append({"type": "message", "role": role, "content": kept})
        for number, call in enumerate(message.get("tool_calls") or ()):
            match call:
                case {"id": str(key), "function": {"name": str(name), "arguments": str(arguments)}}:
                    found.append(
                        {"type": "function_call", "call_id": key, "name": name, "arguments": arguments}
                    )
                case _:
                    param = f"{where}.tool_calls[{number}]"
                    raise BadRequest(f"{param} must be a function with an id, name, arguments", param=param)
    return found


def _given(content: Any, where: str, *, said: bool = False) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index, part in enumerate(content or ()):
        match part:
            case {"type": "text", "text": str(text)}:
                found.append({"type": "output_text" if said else "input_text", "text": text})
            case {"type": "refusal", "refusal": str(text)}:
                found.append({"type": "refusal", "refusal": text})
            case {"type": "image_url", "image_url": {"url": str(url), **rest}}:
                detail = rest.get("detail") or "auto"
                found.append({"type": "input_image", "image_url": url, "detail": detail})
            case {"type": "file", "file": {"file_data": str(data), **rest}}:
                name = rest.get("filename") or "file.pdf"
                found.append({"type": "input_file", "filename": name, "file_data": data})
            case _:
                given = part.get("type") if isinstance(part, Mapping) else part
                raise Unsupported(
                    f"{where}.content[{index}]: OpenAI's Responses have no form for {kind(given)}",
                    param="messages",
                )
    return found
