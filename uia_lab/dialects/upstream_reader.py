"""What readers of answers share: bytes to JSON, deltas to chunks, and errors for what is neither."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from uia_lab.dialects.sse import EventReader
from uia_lab.dialects.upstream_errors import object_of
from uia_lab.domain.errors import BackendFailed, InferenceError
from uia_lab.domain.events import Chunk, Delta, Event, Finished, Text

Piece = tuple[Delta, Any]


class JsonReader:
    """Reads an answer that is one JSON object, or server-sent events of JSON objects.

    A dialect supplies :meth:`event`, :meth:`whole` and :meth:`finished`. What these raise because the
    upstream sent something of another shape becomes a ``BackendFailed``.

    Args:
        stream: Whether it comes as events.
    """

    def __init__(self, *, stream: bool) -> None:
        self._events = EventReader() if stream else None
        self._body: list[bytes] = []
        self._chunks = 0
        self._text: list[str] = []

    def event(self, event: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of one event, each with its log probabilities."""
        raise NotImplementedError

    def whole(self, body: dict[str, Any]) -> Iterator[Piece]:
        """The deltas of an answer that is not streamed."""
        raise NotImplementedError

    def finished(self, text: str) -> Finished | None:
        """The end of the answer, if it has been told; ``text`` is all of its text."""
        raise NotImplementedError

    def feed(self, data: bytes) -> Sequence[Event]:
        """The events that became complete with these bytes, cut anywhere.

        Raises:
            InferenceError: The upstream told of an error in a body that had begun well.
        """
        if self._events is None:
            self._body.append(data)
            return ()
        return self._read(self._events.feed(data))

    def end(self) -> Sequence[Event]:
        """What is left when the body has ended; the last event is ``Finished``.

        Raises:
            BackendFailed: The body ended before the answer did, or was none.
        """
        if self._events is not None:
            found = self._read(self._events.end())
        else:
            found = self._numbered(self.whole(object_of(b"".join(self._body))))
        last = self.finished("".join(self._text))
        if last is None:
            raise BackendFailed(f"the stream ended after {self._chunks} chunks without its end")
        return [*found, last]

    def _read(self, events: Iterable[tuple[str, bytes]]) -> list[Event]:
        # Some gateways end the streams of every dialect as those of chat completions end.
        told = (object_of(data) for _, data in events if data != b"[DONE]")
        return self._numbered(piece for event in told for piece in self.event(event))

    def _numbered(self, pieces: Iterable[Piece]) -> list[Event]:
        found: list[Event] = []
        try:
            for delta, logprobs in pieces:
                if isinstance(delta, Text):
                    self._text.append(delta.text)
                found.append(Chunk(self._chunks, delta, logprobs=logprobs))
                self._chunks += 1
        except InferenceError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackendFailed(
                f"sent what is not of its dialect ({type(error).__name__}: {error})"
            ) from error
        return found


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
