"""Anthropic's Messages as an upstream is asked for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.anthropic import NAME, VERSION
from uia_lab.dialects.anthropic.blocks import turns
from uia_lab.dialects.anthropic.reader import MessageReader
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_errors import upstream_error
from uia_lab.domain.errors import BadRequest, InferenceError, Unsupported
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION

DEFAULT_MAX_TOKENS = 4096
_PATH = "messages"
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_EFFORTS = {"minimal": "low"}
# Parameters that change an answer and have no form here, each with the value that asks for nothing.
_REFUSED: dict[str, Any] = {
    "audio": None,
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "functions": None,
    "logit_bias": None,
    "logprobs": False,
    "min_p": 0,
    "modalities": None,
    "n": 1,
    "prediction": None,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "suffix": None,
    "top_logprobs": 0,
}


class AnthropicMessages:
    """Translates for an upstream with Anthropic's Messages below its base URL, which ends in ``/v1``."""

    name = NAME
    tasks = frozenset({TEXT_GENERATION})
    features = frozenset({"tools", "vision", "files", "response_format"})

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's answer.

        A request that came in this dialect goes out as it came, with what only this dialect has.

        Raises:
            Unsupported: The dialect has no form for something that was asked; the parameter is named.
        """
        headers = {"anthropic-version": VERSION}
        if request.wire is not None and request.wire.dialect == NAME:
            body = _as_it_came(request.wire.body)
            headers |= request.wire.headers
        else:
            body = _translated(request)
        # Always as a stream, so that silence and a caller who left are noticed at once.
        body |= {"model": request.model or body.get("model"), "stream": True}
        return Outgoing(_PATH, body, stream=True, headers=headers)

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:  # noqa: ARG002
        """A fresh reader of that call's answer."""
        return MessageReader()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""
        return upstream_error(status, headers, body)


def _as_it_came(raw: bytes) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(raw)
    body.pop("uia", None)
    for turn in body["messages"]:
        if isinstance(turn["content"], list):
            # Reasoning of a backend of another dialect has no seal, and is not accepted without one.
            turn["content"] = [
                block
                for block in turn["content"]
                if block["type"] != "thinking" or block.get("signature") not in (None, "")
            ]
    body["messages"] = [turn for turn in body["messages"] if turn["content"] != []]
    return body


def _translated(request: InferenceRequest) -> dict[str, Any]:
    given = request.parameters
    for name, harmless in _REFUSED.items():
        if given.get(name) and given[name] != harmless:
            raise Unsupported(f"Anthropic's dialect has no form for {name!r}", param=name)
    system, messages = turns(_chat(request))
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": given.get("max_completion_tokens") or given.get("max_tokens") or DEFAULT_MAX_TOKENS,
    }
    if system:
        body["system"] = system
    temperature = given.get("temperature")
    if temperature is not None and temperature > 1:
        raise Unsupported(f"Anthropic's temperatures end at 1; {temperature} is hotter", param="temperature")
    body |= {name: given[name] for name in ("temperature", "top_p") if given.get(name) is not None}
    if (given.get("top_k") or 0) > 0:
        body["top_k"] = given["top_k"]
    if stop := given.get("stop"):
        body["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    if user := given.get("user"):
        body["metadata"] = {"user_id": user}
    if tools := given.get("tools"):
        body["tools"] = [_tool(tool) for tool in tools]
        if choice := _tool_choice(given):
            body["tool_choice"] = choice
    return body | _output(given)


def _chat(request: InferenceRequest) -> Sequence[Mapping[str, Any]]:
    if request.messages is not None:
        return request.messages
    if not isinstance(request.inputs, str):
        raise Unsupported("Anthropic's dialect takes one prompt of text at a time", param="prompt")
    return [{"role": "user", "content": request.inputs}]


def _tool(tool: Any) -> dict[str, Any]:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}}:
            made: dict[str, Any] = {
                "name": name,
                "input_schema": rest.get("parameters") or {"type": "object", "properties": {}},
            }
            if rest.get("description"):
                made["description"] = rest["description"]
            if rest.get("strict"):
                made["strict"] = True
            return made
    raise Unsupported("Anthropic's dialect has tools of type 'function' only", param="tools")


def _tool_choice(given: Mapping[str, Any]) -> dict[str, Any] | None:
    choice = given.get("tool_choice")
    made: dict[str, Any] | None = None
    match choice:
        case None:
            pass
        case str() if choice in _CHOICES:
            made = {"type": _CHOICES[choice]}
        case {"type": "function", "function": {"name": str(name)}}:
            made = {"type": "tool", "name": name}
        case _:
            raise BadRequest("tool_choice must be auto, required, none or a function", param="tool_choice")
    if given.get("parallel_tool_calls") is False and (made or {}).get("type") != "none":
        made = (made or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    return made


def _output(given: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    config: dict[str, Any] = {}
    match given.get("response_format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            config["format"] = {"type": "json_schema", "schema": schema}
        case _:
            raise Unsupported(
                "Anthropic's dialect has response_format with a json_schema only", param="response_format"
            )
    effort = given.get("reasoning_effort")
    if effort == "none":
        made["thinking"] = {"type": "disabled"}
    elif effort:
        config["effort"] = _EFFORTS.get(effort, effort)
    if config:
        made["output_config"] = config
    return made


ANTHROPIC = AnthropicMessages()
