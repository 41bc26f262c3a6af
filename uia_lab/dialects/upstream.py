"""What a dialect offers an adapter: a request as a call of the upstream, and its answer as events."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from uia_lab.domain.audio import Audio
from uia_lab.domain.errors import InferenceError
from uia_lab.domain.events import Event
from uia_lab.domain.requests import InferenceRequest


class Outgoing(msgspec.Struct, frozen=True):
    """One call of an upstream.

    Args:
        path: Below the base URL, without a slash in front.
        body: What is sent as JSON; with ``files`` the fields of a multipart form, each a string or a list.
        stream: Whether the answer was asked for as a stream.
        headers: Beside those of authentication.
        files: Files of a multipart form, by the name of their field.
    """

    path: str
    body: Mapping[str, Any]
    stream: bool = False
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    files: Mapping[str, Audio] = msgspec.field(default_factory=dict)


class Reader(Protocol):
    """Turns the body of one answer, streamed or whole, into events. Does no I/O."""

    def feed(self, data: bytes) -> Iterable[Event]:
        """The events that became complete with these bytes, cut anywhere; read to the end before the next.

        An error comes behind the events before it, so that what was said is not lost.

        Raises:
            InferenceError: The upstream told of an error in a body that had begun well.
        """

    def end(self) -> Iterable[Event]:
        """What is left when the body has ended; the last event is ``Finished``.

        Raises:
            BackendFailed: The body ended before the answer did, or was none.
        """


class UpstreamDialect(Protocol):
    """One dialect as an adapter speaks it.

    Attributes:
        name: The dialect's name.
        tasks: Tasks it can carry.
        features: What beyond plain text generation it has a form for (:mod:`uia_lab.routing.features`).
    """

    name: str
    tasks: frozenset[str]
    features: frozenset[str]

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's answer.

        Raises:
            Unsupported: The dialect has no form for something that was asked; the parameter is named.
        """

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:
        """A fresh reader of that call's answer."""

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""


def count_of(inputs: Any) -> int:
    """How many texts the inputs are: a list of token ids is one."""
    if not isinstance(inputs, list) or (inputs and isinstance(inputs[0], int)):
        return 1
    return len(inputs)
