"""A request and its answer in OpenAI's dialect, passed on as they are where both sides speak it."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import msgspec

from uia_lab.dialects.json_body import encode
from uia_lab.dialects.stream_relay import StreamRelay
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_reader import BodyReader
from uia_lab.domain.events import Chunk, Event, Finished, Relayed
from uia_lab.domain.requests import InferenceRequest, Wire

CHAT, COMPLETIONS = "openai-chat", "openai-completions"
# What the doors of both forms know, and none of what an upstream may know besides: other models, other tiers.
LOOKED_AT = frozenset(
    {
        "best_of", "echo", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
        "max_completion_tokens", "max_tokens", "messages", "min_p", "n", "parallel_tool_calls",
        "presence_penalty", "prompt", "reasoning_effort", "repetition_penalty", "response_format", "seed",
        "stop", "stream", "stream_options", "suffix", "temperature", "tool_choice", "tools", "top_k",
        "top_logprobs", "top_p", "user",
    }
)  # fmt: skip
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPTIONS = "stream_options"
_USAGE = "include_usage"
_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")


def relays(request: InferenceRequest, wire: str) -> bool:
    """Whether a request came in this form of the dialect and may pass as it came.

    Args:
        request: The request.
        wire: Name of the form, CHAT or COMPLETIONS.
    """
    return request.wire is not None and request.wire.dialect == wire and request.resumed is None


def passed_on(request: InferenceRequest, dialect: str) -> Wire | None:
    """A request as it came, if that was in a dialect and it may go on with all that is in it."""
    wire = request.wire
    return wire if wire is not None and wire.dialect == dialect and not wire.restricted else None


def relayed_call(path: str, request: InferenceRequest) -> Outgoing:
    """The caller's own body for the upstream, each value as it was written, but for three fields.

    The model has the backend's name for it, ``uia`` is ours, and a stream is asked for its usage.

    Args:
        path: Of the endpoint.
        request: With the body as it came, which the door has checked.
    """
    assert request.wire is not None
    body = _FIELDS.decode(request.wire.body)
    body.pop("uia", None)
    if request.wire.restricted:
        body = {name: value for name, value in body.items() if name in LOOKED_AT}
    options = body.pop(_OPTIONS, _NULL)
    # Written here, where a name that has no UTF-8 is escaped.
    body["model"] = msgspec.Raw(encode(request.model))
    if request.stream:
        asked = {} if options == _NULL else _FIELDS.decode(options)
        body[_OPTIONS] = msgspec.Raw(encode({**asked, _USAGE: _TRUE}))
    return Outgoing(path, body, stream=request.stream)


def relay_reader(
    wire: str, make: Callable[[int], BodyReader], request: InferenceRequest, choices: int
) -> Reader:
    """A reader of the answer to such a call.

    Args:
        wire: Name of the form.
        make: Makes a reader that decodes it, given the number of choices.
        request: The request.
        choices: How many choices it asks for.
    """
    if not request.stream:
        return WholeRelay(wire, partial(make, choices))
    return StreamRelay(wire, partial(make, choices), choices, usage_asked=_asks_for_usage(request))


def _asks_for_usage(request: InferenceRequest) -> bool:
    assert request.wire is not None
    if _USAGE.encode() not in request.wire.body:
        return False
    options: Any = msgspec.json.decode(_FIELDS.decode(request.wire.body).get(_OPTIONS, _NULL))
    return isinstance(options, dict) and options.get(_USAGE) is True


class WholeRelay:
    """Reads an answer that comes at once: decoded for what it tells of usage and errors, passed on as it is.

    Args:
        wire: Name of the form.
        make: Makes a reader that decodes it.
    """

    def __init__(self, wire: str, make: Callable[[], BodyReader]) -> None:
        self._wire = wire
        self._make = make
        self._reader = make()

    def feed(self, data: bytes) -> Iterable[Event]:
        """The events of an upstream that streams although nobody asked it to; else none before the end."""
        return self._reader.feed(data)

    def end(self) -> Iterator[Event]:
        """The end of the answer, with all of it.

        Raises:
            InferenceError: It is an error, or no answer.
        """
        body = self._reader.body
        events = self._reader.end()
        if not body:
            yield from events
            return
        last = Relayed(0, len(events) - 1, (self._wire, body), self._decode)
        for event in events:
            if isinstance(event, Finished):
                yield msgspec.structs.replace(event, last=last)

    def _decode(self, body: bytes) -> Iterator[Chunk]:
        return (event for event in self._make().whole(body) if isinstance(event, Chunk))
