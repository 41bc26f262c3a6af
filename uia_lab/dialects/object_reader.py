"""A reader for dialects whose frames differ so much in kind that they are read field by field."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.upstream_reader import BodyReader, decoded
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Event

_OBJECT: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class ObjectReader(BodyReader):
    """Gives each frame as an object; one of another shape than the dialect's becomes a ``BackendFailed``."""

    @abstractmethod
    def frame(self, frame: dict[str, Any]) -> Iterator[Event]:
        """The events of one server-sent event; sets ``complete`` at the last one."""

    @abstractmethod
    def message(self, message: dict[str, Any]) -> Iterator[Event]:
        """The events of an answer that came at once, ``Finished`` included."""

    def event(self, name: str, data: bytes) -> Sequence[Event]:  # noqa: ARG002 - the object has its type
        """The events of one server-sent event.

        Raises:
            InferenceError: It is an error, or malformed.
        """
        # Some gateways end the streams of every dialect as those of chat completions end.
        return () if data == b"[DONE]" else _read(self.frame, data)

    def whole(self, body: bytes) -> Sequence[Event]:
        """The events of an answer that came at once."""
        return _read(self.message, body)


def _read(step: Callable[[dict[str, Any]], Iterator[Event]], data: bytes) -> list[Event]:
    value = decoded(_OBJECT, data)
    try:
        return list(step(value))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BackendFailed(f"sent what is not of its dialect ({why:.200})") from error


def string(value: Any) -> str:
    """The value, which is a string.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not {value!r:.40}")
    return value


def count(value: Any) -> int:
    """A count of tokens; absent is none.

    Raises:
        TypeError: It is no count.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"a count was expected, not {value!r:.40}")
    return value
