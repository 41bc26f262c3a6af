"""Anthropic's content blocks as chat messages, and chat messages as content blocks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import encode, kind
from uia_lab.domain.errors import BadRequest, Unsupported
from uia_lab.domain.requests import Message

_ROLES = ("user", "assistant", "system")
# Clients give back what they got; reasoning that is not shown has no place in a chat message.
_SILENT = frozenset({"redacted_thinking"})


def messages(system: Any, turns: Any) -> list[dict[str, Any]]:
    """The chat messages of a call.

    Args:
        system: The field ``system``: a string or a list of text blocks.
        turns: The field ``messages``.

    Raises:
        BadRequest: One of the wrong shape; ``param`` names it.
        Unsupported: A block that only Anthropic's own servers understand.
    """
    found: list[dict[str, Any]] = []
    if system not in (None, "", []):
        text = "\n\n".join(_text(block, where) for block, where in _blocks(system, "system"))
        found.append({"role": "system", "content": text})
    if turns is None:
        raise BadRequest("messages is missing", param="messages")
    if not isinstance(turns, list) or not turns:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    for index, turn in enumerate(turns):
        where = f"messages[{index}]"
        if not isinstance(turn, dict):
            raise BadRequest(f"{where} must be an object, not {kind(turn)}", param=where)
        role = turn.get("role")
        if role not in _ROLES:
            raise Fields(turn, where + ".").wrong("role", "user, assistant or system")
        blocks = _blocks(turn.get("content"), f"{where}.content")
        if role == "user":
            found += _user(blocks)
        elif role == "assistant":
            found.append(_assistant(blocks))
        else:
            found.append({"role": "system", "content": "\n\n".join(_text(*block) for block in blocks)})
    return found


def _blocks(content: Any, where: str) -> list[tuple[dict[str, Any], str]]:
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)]
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a string or a list of blocks, not {kind(content)}", param=where)
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise BadRequest(f"{where}[{index}] must be an object with a type", param=f"{where}[{index}]")
    return [(block, f"{where}[{index}]") for index, block in enumerate(content)]


def _text(block: Mapping[str, Any], where: str) -> str:
    if block["type"] != "text" or not isinstance(block.get("text"), str):
        raise BadRequest(f"{where} must be a text block with a text", param=where)
    return str(block["text"])


def _user(blocks: Iterable[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
    """Tool results as messages of their own, and all else as one message behind them."""
    found: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block, where in blocks:
        if block["type"] != "tool_result":
            parts.append(_part(block, where))
            continue
        call = Fields(block, where + ".").text("tool_use_id", 256)
        if call is None:
            raise BadRequest(f"{where}.tool_use_id is missing", param=f"{where}.tool_use_id")
        inner = [] if block.get("content") is None else _blocks(block["content"], f"{where}.content")
        given = [_part(*item) for item in inner]
        text = "\n".join(part["text"] for part in given if part["type"] == "text")
        found.append({"role": "tool", "tool_call_id": call, "content": text})
        # A tool's message is text only; what else it gave is shown to the model with the next words.
        parts += [part for part in given if part["type"] != "text"]
    if parts or not found:
        found.append({"role": "user", "content": _content(parts)})
    return found


def _content(parts: list[dict[str, Any]]) -> Any:
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": _text(block, where)}
    if block["type"] not in ("image", "document"):
        raise Unsupported(
            f"{where}: a block of type {kind(block['type'])} is understood by Anthropic's own servers only",
            param=where,
        )
    fields = Fields(block, where + ".")
    source = Fields(fields.mapping("source") or {}, where + ".source.")
    form = source.values.get("type")
    if form == "text":
        return {"type": "text", "text": source.text("data", 2**31) or ""}
    if form == "url" and block["type"] == "image" and (url := source.text("url", 65_536)):
        return {"type": "image_url", "image_url": {"url": url}}
    if form == "base64":
        media, data = source.text("media_type", 128), source.text("data", 2**31)
        if media is None or data is None:
            raise BadRequest(f"{where}.source needs media_type and data", param=f"{where}.source")
        address = f"data:{media};base64,{data}"
        if block["type"] == "image":
            return {"type": "image_url", "image_url": {"url": address}}
        name = block.get("title") if isinstance(block.get("title"), str) else None
        return {"type": "file", "file": {"filename": name or "document.pdf", "file_data": address}}
    raise Unsupported(
        f"{where}.source.type: {kind(form)} is not taken here; send the data as base64"
        + (", or its url" if block["type"] == "image" else ""),
        param=f"{where}.source.type",
    )


def _assistant(blocks: Iterable[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, where in blocks:
        fields = Fields(block, where + ".")
        if block["type"] == "thinking":
            if not isinstance(thought := block.get("thinking"), str):
                raise fields.wrong("thinking", "a string")
            reasoning.append(thought)
        elif block["type"] == "tool_use":
            name, call = fields.text("name", 256), fields.text("id", 256)
            if name is None or call is None:
                raise BadRequest(f"{where} needs id and name", param=where)
            function = {"name": name, "arguments": encode(fields.mapping("input") or {}).decode()}
            calls.append({"id": call, "type": "function", "function": function})
        elif block["type"] not in _SILENT:
            texts.append(_text(block, where))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    if text := "".join(reasoning):
        message["reasoning_content"] = text
    return message


def turns(chat: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """Chat messages as the fields ``system`` and ``messages``.

    Raises:
        BadRequest: A tool call whose arguments are no JSON object.
        Unsupported: A part this dialect has no block for.
    """
    system: list[str] = []
    found: list[dict[str, Any]] = []
    for index, message in enumerate(chat):
        where = f"messages[{index}]"
        role = message.get("role")
        if role in ("system", "developer"):
            system += [block["text"] for block in _given(message, where) if block["type"] == "text"]
            continue
        blocks = _given(message, where)
        if role in ("tool", "function"):
            call = str(message.get("tool_call_id") or message.get("name") or "")
            blocks = [{"type": "tool_result", "tool_use_id": call, "content": blocks}]
        elif role == "assistant":
            blocks += [
                _tool_use(call, f"{where}.tool_calls[{number}]")
                for number, call in enumerate(message.get("tool_calls") or ())
            ]
        side = "assistant" if role == "assistant" else "user"
        if found and found[-1]["role"] == side:
            found[-1]["content"] += blocks
        elif blocks:
            found.append({"role": side, "content": blocks})
    return "\n\n".join(system), found


def _given(message: Message, where: str) -> list[dict[str, Any]]:
    content = message.get("content")
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadRequest(f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    parts = [_block(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    # The API takes no text block without a text.
    return [part for part in parts if part != {"type": "text", "text": ""}]


def _block(part: Any, where: str) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return {"type": "image", "source": _source(url)}
        case {"type": "file", "file": {"file_data": str(url), **rest}} if url.startswith("data:"):
            return {"type": "document", "source": _source(url), "title": str(rest.get("filename") or "file")}
    given = part.get("type") if isinstance(part, Mapping) else part
    raise Unsupported(f"{where}: Anthropic's dialect has no block for {kind(given)}", param="messages")


def _source(url: str) -> dict[str, Any]:
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:"):
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": head[len("data:") :].partition(";")[0], "data": data}


def _tool_use(call: Any, where: str) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name), "arguments": str(arguments)}}:
            try:
                given = msgspec.json.decode(arguments or "{}")
            except (msgspec.MsgspecError, ValueError, RecursionError):
                given = None
            if isinstance(given, dict):
                return {"type": "tool_use", "id": str(call.get("id") or name), "name": name, "input": given}
    raise BadRequest(f"{where} must be a function with a name and arguments in JSON", param=where)


def arguments_object(text: str) -> dict[str, Any]:
    """A tool call's arguments as the object this dialect has for them.

    What is no object, as when the answer was cut off, is kept under the name that Anthropic's guide gives it.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}
