"""A body of ``POST /v1/responses`` as a call."""

from typing import Any

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.responses import NAME
from uia_lab.dialects.responses.items import messages
from uia_lab.dialects.responses.tools import chosen, offered
from uia_lab.domain.errors import Unsupported
from uia_lab.domain.requests import Wire
from uia_lab.domain.tasks import TEXT_GENERATION

_LARGEST_ANSWER = 10_000_000
_LOGPROBS = "message.output_text.logprobs"
# What needs a server that keeps responses.
_KEPT = ("previous_response_id", "conversation", "background", "prompt", "store")

PARAMS = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
}
"""Names of this dialect for the parameters that errors name."""


def parse(body: bytes) -> Call:
    """The call in a body; fields we do not know are ignored.

    Raises:
        BadRequest: The body or one of its fields is wrong; ``param`` names the field.
        Unsupported: Something that only OpenAI's own servers keep or do.
    """
    values = decode_object(body)
    fields = Fields(values)
    for name in _KEPT:
        if values.get(name):
            raise Unsupported(
                f"{name}: this server keeps no responses; send the whole conversation as input", param=name
            )
    reasoning = Fields(fields.mapping("reasoning") or {}, "reasoning.")
    text = Fields(fields.mapping("text") or {}, "text.")
    instructions = fields.text("instructions", 2**31) if values.get("instructions") else None
    offer = offered(fields)
    parameters: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "max_completion_tokens": fields.whole("max_output_tokens", 1, _LARGEST_ANSWER),
        "reasoning_effort": reasoning.text("effort", 32),
        "verbosity": text.text("verbosity", 32),
        "response_format": _format(text),
        "user": fields.text("user", 512),
        "tools": offer.functions or None,
    }
    choice = chosen(values.get("tool_choice"), offer)
    if offer.functions:
        parameters |= choice
        if values.get("parallel_tool_calls") is not None:
            parameters["parallel_tool_calls"] = fields.flag("parallel_tool_calls")
    parameters |= _logprobs(fields)
    return Call(
        TEXT_GENERATION,
        model=fields.text("model", 512),
        messages=messages(instructions, values.get("input")),
        parameters={name: value for name, value in parameters.items() if value is not None},
        stream=fields.flag("stream"),
        hints=fields.mapping("uia") or {},
        wire=Wire(NAME, body),
        shown={
            "known": offer.known,
            "response": {
                "instructions": instructions,
                "max_output_tokens": parameters["max_completion_tokens"],
                "metadata": fields.mapping("metadata") or {},
                "parallel_tool_calls": parameters.get("parallel_tool_calls", True),
                "reasoning": {"effort": parameters["reasoning_effort"], "summary": None},
                "temperature": parameters["temperature"],
                "text": {"format": text.values.get("format") or {"type": "text"}},
                "tool_choice": values.get("tool_choice") or "auto",
                "tools": offer.wire,
                "top_p": parameters["top_p"],
                "user": parameters["user"],
            },
        },
    )


def _format(text: Fields) -> dict[str, Any] | None:
    given = text.mapping("format")
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "name": str(name), "schema": dict(schema)}:
            form: dict[str, Any] = {"name": name, "schema": schema}
            form |= {key: given[key] for key in ("strict", "description") if given.get(key) is not None}
            return {"type": "json_schema", "json_schema": form}
    raise text.wrong("format", "an object of type text, json_object, or json_schema with a name and a schema")


def _logprobs(fields: Fields) -> dict[str, Any]:
    top = fields.whole("top_logprobs", 0, 20)
    if not top and _LOGPROBS not in (fields.strings("include") or ()):
        return {}
    return {"logprobs": True} | ({"top_logprobs": top} if top else {})
