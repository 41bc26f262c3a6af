"""Answers that come as one JSON object a line."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from uia_lab.dialects.upstream_reader import AnswerBuilder
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Event

MAX_LINE = 8 << 20


class LineReader(ABC):
    """Cuts a body into lines; one that comes at once is a single line.

    Attributes:
        answer: What came so far.
        complete: Whether the upstream has said that this was all.
    """

    def __init__(self) -> None:
        self.answer = AnswerBuilder()
        self.complete = False
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events of the lines that became complete with these bytes.

        Raises:
            InferenceError: The upstream told of an error, or sent what is none of its dialect.
        """
        if self.complete:
            return
        self._rest += data
        if len(self._rest) > MAX_LINE:
            raise BackendFailed(f"sent one line of more than {MAX_LINE >> 20} MiB")
        if b"\n" not in data:
            return
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if line.strip():
                yield from self.line(line)
            if self.complete:
                return

    def end(self) -> Iterator[Event]:
        """The events of a last line without its end.

        Raises:
            BackendFailed: The body ended before the answer did.
        """
        if not self.complete and self._rest.strip():
            yield from self.line(bytes(self._rest))
        if not self.complete:
            raise BackendFailed(f"the stream ended after {self.answer.chunks} chunks without its end")

    @abstractmethod
    def line(self, data: bytes) -> Sequence[Event]:
        """The events of one line; sets ``complete`` at the last one."""
