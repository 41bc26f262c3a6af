"""A body of ``POST /v1/messages`` as a call."""

from typing import Any

from uia_lab.dialects.anthropic import BETA, NAME
from uia_lab.dialects.anthropic.blocks import messages
from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import decode_object
from uia_lab.dialects.openai_call import MAX_STOPS, Call
from uia_lab.domain.errors import BadRequest, Unsupported
from uia_lab.domain.requests import Wire
from uia_lab.domain.tasks import TEXT_GENERATION

_LARGEST_ANSWER = 10_000_000
_LONGEST_USER = 64
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Tokens of thinking up to which an effort is called so, for backends that know efforts only.
_EFFORTS = ((4096, "low"), (16_384, "medium"))


def parse(body: bytes, beta: str | None = None) -> Call:
    """The call in a body; fields we do not know are ignored.

    Args:
        body: The body.
        beta: The header ``anthropic-beta``, without which Anthropic refuses the fields it names.

    Raises:
        BadRequest: The body or one of its fields is wrong; ``param`` names the field.
        Unsupported: Something that only Anthropic's own servers do.
    """
    values = decode_object(body)
    fields = Fields(values)
    if values.get("max_tokens") is None:
        raise BadRequest("max_tokens is missing", param="max_tokens")
    if values.get("mcp_servers"):
        raise Unsupported("mcp_servers are called by Anthropic's own servers only", param="mcp_servers")
    parameters: dict[str, Any] = {
        "max_tokens": fields.whole("max_tokens", 1, _LARGEST_ANSWER),
        "temperature": fields.number("temperature", 0, 1),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.whole("top_k", 0),
        "stop": _stops(fields),
        "user": _user(fields),
        "tools": _tools(fields) or None,
    }
    if parameters["tools"]:
        parameters |= _tool_choice(fields)
    output = Fields(fields.mapping("output_config") or {}, "output_config.")
    parameters["reasoning_effort"] = output.text("effort", 32) or _effort(fields)
    parameters["response_format"] = _format(output)
    return Call(
        TEXT_GENERATION,
        model=fields.text("model", 512),
        messages=messages(values.get("system"), values.get("messages")),
        parameters={name: value for name, value in parameters.items() if value is not None},
        stream=fields.flag("stream"),
        hints=fields.mapping("uia") or {},
        wire=Wire(NAME, body, {BETA: beta} if beta else {}),
    )


def _user(fields: Fields) -> str | None:
    """Who the caller asks for; a longer name than other dialects take stays in this one."""
    user = Fields(fields.mapping("metadata") or {}, "metadata.").text("user_id")
    return user if user is not None and len(user) <= _LONGEST_USER else None


def _stops(fields: Fields) -> list[str] | None:
    stops = fields.strings("stop_sequences")
    if stops and len(stops) > MAX_STOPS:
        raise BadRequest(
            f"stop_sequences has {len(stops)} strings; at most {MAX_STOPS} are taken", param="stop_sequences"
        )
    return [stop for stop in stops or () if stop] or None


def _tools(fields: Fields) -> list[dict[str, Any]]:
    found = []
    for index, tool in enumerate(fields.objects("tools") or ()):
        one = Fields(tool, f"tools[{index}].")
        kind = one.text("type", 64)
        if kind not in (None, "custom"):
            raise Unsupported(
                f"tools[{index}].type: {kind!r} runs on Anthropic's own servers only; tools of your own have "
                "a name and an input_schema",
                param=f"tools[{index}].type",
            )
        name, schema = one.text("name", 256), one.mapping("input_schema")
        if name is None or schema is None:
            param = f"tools[{index}].{'name' if name is None else 'input_schema'}"
            raise BadRequest(f"{param} is missing", param=param)
        function: dict[str, Any] = {"name": name, "parameters": schema}
        if description := one.text("description", 1_000_000) if tool.get("description") else None:
            function["description"] = description
        if one.flag("strict"):
            function["strict"] = True
        found.append({"type": "function", "function": function})
    return found


def _tool_choice(fields: Fields) -> dict[str, Any]:
    given = fields.mapping("tool_choice")
    if given is None:
        return {}
    choice = Fields(given, "tool_choice.")
    kind = choice.text("type", 64) or ""
    found: dict[str, Any] = {}
    if kind == "tool":
        name = choice.text("name", 256)
        if name is None:
            raise BadRequest("tool_choice.name is missing", param="tool_choice.name")
        found["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in _CHOICES:
        found["tool_choice"] = _CHOICES[kind]
    else:
        raise choice.wrong("type", "auto, any, tool or none")
    if choice.flag("disable_parallel_tool_use"):
        found["parallel_tool_calls"] = False
    return found


def _effort(fields: Fields) -> str | None:
    """How hard to think, for backends of other dialects; one of this dialect gets ``thinking`` itself."""
    given = fields.mapping("thinking")
    if given is None:
        return None
    thinking = Fields(given, "thinking.")
    kind = thinking.text("type", 64)
    if kind is None:
        raise thinking.wrong("type", "enabled, adaptive or disabled")
    if kind != "enabled":
        return None
    budget = thinking.whole("budget_tokens", 1, _LARGEST_ANSWER)
    if budget is None:
        raise BadRequest("thinking.budget_tokens is missing", param="thinking.budget_tokens")
    return next((effort for most, effort in _EFFORTS if budget <= most), "high")


def _format(output: Fields) -> dict[str, Any] | None:
    given = output.mapping("format")
    if given is None:
        return None
    form = Fields(given, "output_config.format.")
    schema = form.mapping("schema")
    if form.values.get("type") != "json_schema" or schema is None:
        raise output.wrong("format", "an object with the type json_schema and a schema")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
