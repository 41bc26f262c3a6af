"""OpenAI's Responses as an upstream is asked for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.responses import NAME
from uia_lab.dialects.responses.items import items
from uia_lab.dialects.responses.reader import ResponseReader
from uia_lab.dialects.responses.tools import OWN
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_errors import upstream_error
from uia_lab.domain.errors import BadRequest, InferenceError, Unsupported
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION

_PATH = "responses"
# Parameters that change an answer and have no form here, each with the value that asks for nothing.
_REFUSED: dict[str, Any] = {
    "audio": None,
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "functions": None,
    "logit_bias": None,
    "min_p": 0,
    "modalities": None,
    "n": 1,
    "prediction": None,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "stop": None,
    "suffix": None,
    "top_k": -1,
}


class OpenAIResponses:
    """Translates for an upstream with OpenAI's Responses below its base URL, which ends in ``/v1``."""

    name = NAME
    tasks = frozenset({TEXT_GENERATION})
    features = frozenset({"tools", "vision", "files", "response_format", "logprobs"})

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's answer; it asks the upstream to keep nothing.

        A request that came in this dialect goes out as it came, with what only this dialect has.

        Raises:
            Unsupported: The dialect has no form for something that was asked; the parameter is named.
        """
        if request.wire is not None and request.wire.dialect == NAME:
            body = _as_it_came(request.wire.body)
        else:
            body = _translated(request)
        # Always as a stream, so that silence and a caller who left are noticed at once.
        body |= {"model": request.model or body.get("model"), "stream": True, "store": False}
        return Outgoing(_PATH, body, stream=True)

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:  # noqa: ARG002
        """A fresh reader of that call's answer."""
        return ResponseReader()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""
        return upstream_error(status, headers, body)


def _as_it_came(raw: bytes) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(raw)
    body.pop("uia", None)
    if body.get("tools"):
        body["tools"] = [tool for tool in body["tools"] if tool["type"] in OWN]
    if isinstance(body["input"], list):
        body["input"] = [kept for item in body["input"] if (kept := _restored(item)) is not None]
    return body


def _restored(item: dict[str, Any]) -> dict[str, Any] | None:
    """An item as the upstream knows it: reasoning by the id it was sealed with, all else without one."""
    item = {name: value for name, value in item.items() if name != "id"}
    if item.get("type") != "reasoning":
        return item
    name, mark, seal = str(item.get("encrypted_content") or "").partition("|")
    # Reasoning of a backend of another dialect is not sealed, and not accepted without a seal.
    return item | {"id": name, "encrypted_content": seal} if mark else None


def _translated(request: InferenceRequest) -> dict[str, Any]:
    given = request.parameters
    for name, harmless in _REFUSED.items():
        if given.get(name) and given[name] != harmless:
            raise Unsupported(f"OpenAI's Responses have no form for {name!r}", param=name)
    body: dict[str, Any] = {"input": items(_chat(request))}
    body |= {
        name: given[name]
        for name in ("temperature", "top_p", "user", "parallel_tool_calls")
        if given.get(name) is not None
    }
    if limit := given.get("max_completion_tokens") or given.get("max_tokens"):
        body["max_output_tokens"] = limit
    if effort := given.get("reasoning_effort"):
        body["reasoning"] = {"effort": effort}
    if tools := given.get("tools"):
        body["tools"] = [_tool(tool) for tool in tools]
        if (choice := given.get("tool_choice")) is not None:
            body["tool_choice"] = _choice(choice)
    text: dict[str, Any] = {}
    if form := _format(given.get("response_format")):
        text["format"] = form
    if verbosity := given.get("verbosity"):
        text["verbosity"] = verbosity
    if text:
        body["text"] = text
    if given.get("logprobs"):
        body["include"] = ["message.output_text.logprobs"]
        body["top_logprobs"] = given.get("top_logprobs") or 0
    return body


def _chat(request: InferenceRequest) -> Sequence[Mapping[str, Any]]:
    if request.messages is not None:
        return request.messages
    if not isinstance(request.inputs, str):
        raise Unsupported("OpenAI's Responses take one prompt of text at a time", param="prompt")
    return [{"role": "user", "content": request.inputs}]


def _tool(tool: Any) -> dict[str, Any]:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}}:
            made: dict[str, Any] = {"type": "function", "name": name, "strict": bool(rest.get("strict"))}
            made["parameters"] = rest.get("parameters") or {"type": "object", "properties": {}}
            if rest.get("description"):
                made["description"] = rest["description"]
            return made
    raise Unsupported("OpenAI's Responses are asked with tools of type 'function' only", param="tools")


def _choice(choice: Any) -> Any:
    match choice:
        case "auto" | "none" | "required":
            return choice
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "function", "name": name}
    raise BadRequest("tool_choice must be auto, required, none or a function", param="tool_choice")


def _format(form: Any) -> dict[str, Any] | None:
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "json_schema": {"schema": dict()} as given}:
            return {"type": "json_schema", "name": "output", **given}
    raise BadRequest(
        "response_format must be json_object, or json_schema with a schema", param="response_format"
    )


RESPONSES = OpenAIResponses()
