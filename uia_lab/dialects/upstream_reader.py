"""What the readers of upstream answers share: bytes to frames, and frames to numbered events."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from uia_lab.dialects import sse
from uia_lab.dialects.answer import logprob_entries
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Delta, Event, Finished, Text, Usage

T = TypeVar("T")

MAX_BODY = 256 << 20
# Whoever collects an answer keeps a place for each choice up to the highest.
MOST_CHOICES = 128
_SHOWN = 80
_REASONS = {
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_length": "length",
}


class AnswerBuilder:
    """Numbers the chunks of one answer and puts its end together.

    Args:
        choices: How many choices were asked for. A chunk of one beyond them and beyond MOST_CHOICES is
            refused.

    Attributes:
        usage: Token counts, once the upstream told them.
    """

    def __init__(self, choices: int = 0) -> None:
        self.usage = Usage(estimated=True)
        self._places = max(choices, MOST_CHOICES)
        self._pieces: list[str] = []
        self._chunks = 0
        self._begun: set[int] = set()
        self._reasons: dict[int, str] = {}

    @property
    def chunks(self) -> int:
        """Chunks given so far."""
        return self._chunks

    def chunk(self, delta: Delta, choice: int = 0, logprobs: Any = None) -> Chunk:
        """The next chunk.

        Raises:
            BackendFailed: Its choice or its log probabilities cannot be.
        """
        self._check(choice)
        if logprobs:
            logprob_entries(logprobs)
        if choice == 0 and isinstance(delta, Text):
            self._pieces.append(delta.text)
        made = Chunk(self._chunks, delta, choice, logprobs)
        self._chunks += 1
        self._begun.add(choice)
        return made

    def ended(self, reason: str, choice: int = 0) -> None:
        """A choice has ended; its reason is brought to OpenAI's words.

        Raises:
            BackendFailed: There is no such choice.
        """
        self._check(choice)
        self._begun.add(choice)
        self._reasons[choice] = _REASONS.get(reason, reason)

    def has_ended(self, choices: int) -> bool:
        """Whether so many choices, and every one that began, have told their finish reason."""
        return len(self._reasons) >= max(choices, len(self._begun))

    def finished(self) -> Finished:
        """The end of the answer.

        Raises:
            BackendFailed: A choice has not ended, or there was none.
        """
        if not self._begun or len(self._reasons) < len(self._begun):
            raise BackendFailed(f"ended its answer after {self._chunks} chunks without a finish reason")
        reasons = tuple(self._reasons[choice] for choice in sorted(self._reasons))
        return Finished(
            "".join(self._pieces),
            self.usage,
            reasons[0],
            finish_reasons=reasons if len(reasons) > 1 else (),
        )

    def _check(self, choice: int) -> None:
        if not 0 <= choice < self._places:
            raise BackendFailed(f"sent a choice whose number is not one of 0 to {self._places - 1}")


class BodyReader(ABC):
    """Reads an answer as server-sent events or, from an upstream that sends it at once, as one JSON body.

    Args:
        choices: How many choices were asked for. Once each has told its finish reason, a stream may do
            without the dialect's mark of its end, as that of ``transformers serve`` does; 0 insists on it.

    Attributes:
        answer: What came so far.
        complete: Whether the upstream has said that this was all.
    """

    def __init__(self, choices: int = 0) -> None:
        self.answer = AnswerBuilder(choices)
        self.complete = False
        self._choices = choices
        self._parser: sse.Parser | None = None
        self._body = bytearray()

    @property
    def body(self) -> bytes:
        """What has come of a body that comes at once; empty where it is a stream."""
        return bytes(self._body)

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that became complete with these bytes.

        Raises:
            InferenceError: The upstream told of an error, or sent what is none of its dialect.
        """
        if self.complete:
            return
        if self._parser is None:
            self._body += data
            if len(self._body) > MAX_BODY:
                raise BackendFailed(f"sent a body of more than {MAX_BODY >> 20} MiB")
            start = bytes(self._body[:64]).lstrip()[:1]
            if start in (b"", b"{", b"["):
                return
            self._parser, data = sse.Parser(), bytes(self._body)
            self._body.clear()
        for name, text in self._parser.feed(data):
            yield from self.event(name, text)
            if self.complete:
                return

    def end(self) -> Sequence[Event]:
        """The events of a body that came at once; nothing where the stream has told its end already.

        Raises:
            BackendFailed: The body ended before the answer did.
        """
        if self.complete:
            return ()
        if self._parser is not None and self._choices and self.answer.has_ended(self._choices):
            self.complete = True
            return [self.answer.finished()]
        if self._parser is not None:
            raise BackendFailed(f"the stream ended after {self.answer.chunks} chunks without its end")
        body = bytes(self._body)
        self._body.clear()
        if not body.strip():
            raise BackendFailed("ended its answer before anything of it came")
        self.complete = True
        return self.whole(body)

    @abstractmethod
    def event(self, name: str, data: bytes) -> Sequence[Event]:
        """The events of one server-sent event; sets ``complete`` at the last one."""

    @abstractmethod
    def whole(self, body: bytes) -> Sequence[Event]:
        """The events of an answer that came at once, ``Finished`` included."""


def decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """One frame or body.

    Raises:
        BackendFailed: It is no JSON, or not of the dialect; the beginning of it is shown.
    """
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        shown = data[:_SHOWN].decode(errors="replace")
        raise BackendFailed(f"sent a malformed chunk: {shown!r} ({str(error)[:200]})") from None
