"""A parsed call, and the parameters that the endpoints of OpenAI's dialect share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.json_body import kind
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.events import Usage
from uia_lab.domain.requests import InferenceRequest, Message, RoutingHints, Wire

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_ANSWERS = 2048


class Call(msgspec.Struct, frozen=True):
    """One call as it was parsed.

    Args:
        task: Task of the endpoint.
        model: Model asked for; None for the default.
        inputs: Prompt or texts.
        messages: Chat messages.
        parameters: What backends get, under OpenAI's names.
        stream: Whether server-sent events were asked for.
        include_usage: Whether the stream ends with a usage chunk.
        choices: How many choices the answer has.
        encoding: How embeddings are written, ``float`` or ``base64``.
        hints: The body's ``uia`` object.
        wire: The call as it came, for an upstream of the same dialect.
        shown: What the answer repeats of the call, or is written by, beyond the fields above.
    """

    task: str
    model: str | None
    inputs: Any = None
    messages: Sequence[Message] | None = None
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    encoding: str = "float"
    hints: Mapping[str, Any] = msgspec.field(default_factory=dict)
    wire: Wire | None = None
    shown: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def request(
        self, request_id: str, principal: str, routing: RoutingHints, via: tuple[str, ...] = ()
    ) -> InferenceRequest:
        """The request for the manager.

        Args:
            request_id: Id it has in headers and in ``DELETE /requests/{id}``.
            principal: Name of who asks.
            routing: The hints, headers included.
            via: Instances it has passed.
        """
        return InferenceRequest(
            self.task,
            model=self.model,
            inputs=self.inputs,
            messages=self.messages,
            parameters=self.parameters,
            stream=self.stream,
            principal=principal,
            via=via,
            wire=self.wire,
            routing=routing,
            id=request_id,
        )


Checks = Mapping[str, Callable[[Fields], Any]]
"""How the parameters of an endpoint are read, by name."""


def checked(checks: Checks, fields: Fields) -> dict[str, Any]:
    """The parameters that were sent, each checked; null and what asks for nothing count as not sent.

    Raises:
        BadRequest: One of the wrong type or out of range.
    """
    sent = fields.values.keys() & checks.keys()
    return {name: value for name in sorted(sent) if (value := checks[name](fields)) is not None}


def streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the stream ends with a usage chunk."""
    stream = fields.flag("stream")
    options = fields.mapping("stream_options") or {}
    return stream, stream and Fields(options, "stream_options.").flag("include_usage")


def texts(fields: Fields, name: str, most: int = 2048) -> tuple[Any, int]:
    """A text, a list of texts, a text as token ids, or a list of those.

    Args:
        fields: The body.
        name: The field.
        most: Texts accepted at once.

    Returns:
        The value as it came, and how many texts it is.

    Raises:
        BadRequest: Absent, empty, mixed or too many.
    """
    value = fields.values.get(name)
    if isinstance(value, str):
        return value, 1
    if value is None:
        raise BadRequest(f"{name} is missing", param=name)
    if not isinstance(value, list) or not value:
        raise fields.wrong(name, "a string, a list of strings, or token ids; not empty")
    if _tokens(value):
        return value, 1
    if len(value) > most:
        raise BadRequest(f"{name} has {len(value)} texts; at most {most} are taken at once", param=name)
    if not all(isinstance(item, str) for item in value) and not all(_tokens(item) for item in value):
        raise BadRequest(f"{name} must be all strings or all lists of token ids, none empty", param=name)
    return value, len(value)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Token counts under OpenAI's names; ``estimated`` is there only where they are."""
    counts: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.estimated:
        counts["estimated"] = True
    return counts


def _stop(fields: Fields) -> str | list[str] | None:
    value = fields.values.get("stop")
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"stop must be a string or a list of strings, not {kind(value)}", param="stop")
    if len(value) > MAX_STOPS:
        raise BadRequest(f"stop has {len(value)} strings; at most {MAX_STOPS} are taken", param="stop")
    return [item for item in value if item] or None


SAMPLING: Checks = {
    "temperature": lambda fields: fields.number("temperature", 0, 2),
    "top_p": lambda fields: fields.number("top_p", 0, 1),
    "top_k": lambda fields: fields.whole("top_k", -1),
    "min_p": lambda fields: fields.number("min_p", 0, 1),
    "frequency_penalty": lambda fields: fields.number("frequency_penalty", -2, 2),
    "presence_penalty": lambda fields: fields.number("presence_penalty", -2, 2),
    "repetition_penalty": lambda fields: fields.number("repetition_penalty", 0, 10),
    "n": lambda fields: fields.whole("n", 1, MAX_CHOICES),
    "seed": lambda fields: fields.whole("seed"),
    "stop": _stop,
    "logit_bias": lambda fields: fields.mapping("logit_bias") or None,
}
"""The sampling parameters that chat and completions share."""


def _tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(item) is int and 0 <= item < 2**31 for item in value)
    )
