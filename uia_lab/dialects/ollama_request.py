"""Messages and parameters under OpenAI's names in the forms that Ollama takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.domain.errors import BadRequest, Unsupported
from uia_lab.domain.requests import Message

_OPTIONS = {
    "frequency_penalty": "frequency_penalty",
    "max_completion_tokens": "num_predict",
    "max_tokens": "num_predict",
    "min_p": "min_p",
    "num_ctx": "num_ctx",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repeat_penalty",
    "seed": "seed",
    "stop": "stop",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}
_PLAIN = ("tools", "top_logprobs", "suffix", "keep_alive", "think")
_REFUSED = ("audio", "best_of", "echo", "function_call", "functions", "logit_bias", "modalities")
_EFFORTS = ("low", "medium", "high")


def arguments_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a call beside model and prompt.

    Raises:
        Unsupported: Something Ollama has no form for; the parameter is named.
    """
    for name in _REFUSED:
        if parameters.get(name):
            raise Unsupported(f"Ollama has no {name!r}", param=name)
    if parameters.get("n", 1) != 1:
        raise Unsupported("Ollama gives one answer a request", param="n")
    body: dict[str, Any] = {
        "options": {other: parameters[name] for name, other in _OPTIONS.items() if name in parameters},
        **{name: parameters[name] for name in _PLAIN if name in parameters},
    }
    stop = body["options"].get("stop")
    if isinstance(stop, str):
        body["options"]["stop"] = [stop]
    logprobs = parameters.get("logprobs")
    if logprobs not in (None, False):
        body["logprobs"] = True
        if type(logprobs) is int:
            body["top_logprobs"] = logprobs
    if (form := parameters.get("response_format")) is not None:
        body["format"] = _format(form)
    if (effort := parameters.get("reasoning_effort")) is not None:
        body["think"] = effort if effort in _EFFORTS else effort != "none"
    choice = parameters.get("tool_choice")
    if choice == "none":
        body.pop("tools", None)
    elif choice not in (None, "auto"):
        raise Unsupported("Ollama chooses among the tools itself", param="tool_choice")
    return body


def messages_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages, with their parts, pictures and tool calls in Ollama's form.

    Raises:
        Unsupported: A part that is neither text nor a picture in the message itself.
        BadRequest: The arguments of a tool call are no JSON.
    """
    return [_message(message) for message in messages]


def _message(message: Message) -> dict[str, Any]:
    role = message.get("role")
    made: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = message.get("content")
    if isinstance(content, list):
        made["content"] = "\n".join(part["text"] for part in content if part.get("type") == "text")
        if pictures := [_picture(part) for part in content if part.get("type") != "text"]:
            made["images"] = pictures
    else:
        made["content"] = content or ""
    if thought := message.get("reasoning_content"):
        made["thinking"] = thought
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [_call(call) for call in calls]
    if role == "tool" and (name := message.get("name")):
        made["tool_name"] = name
    return made


def _picture(part: Mapping[str, Any]) -> str:
    source = part.get("image_url")
    address = source.get("url") if isinstance(source, dict) else source
    if part.get("type") != "image_url" or not isinstance(address, str):
        raise Unsupported(f"Ollama reads text and pictures, not {part.get('type')!r} parts", param="messages")
    head, comma, data = address.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise Unsupported("Ollama takes pictures as data: addresses in base64 only", param="messages")
    return data


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise BadRequest("tool_calls must be objects with a function", param="messages")
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.MsgspecError, TypeError):
        raise BadRequest("the arguments of a tool call are no JSON", param="messages") from None
    return {"function": {"name": function.get("name"), "arguments": arguments}}


def _format(form: Any) -> Any:
    kind = form.get("type") if isinstance(form, dict) else form
    if kind == "json_object":
        return "json"
    schema = form.get("json_schema") if isinstance(form, dict) else None
    if kind == "json_schema" and isinstance(schema, dict) and "schema" in schema:
        return schema["schema"]
    raise Unsupported(f"Ollama has no response_format {kind!r}", param="response_format")
