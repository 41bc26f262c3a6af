"""``POST completions`` of an upstream: a request to the wire, and its chunks to events."""

from collections.abc import Sequence
from typing import Any

import msgspec

from uia_lab.dialects.openai_chat_upstream import Counts, choices_of
from uia_lab.dialects.upstream import Outgoing
from uia_lab.dialects.upstream_errors import frame_error
from uia_lab.dialects.upstream_reader import BodyReader, decoded
from uia_lab.domain.events import Chunk, Event, Text
from uia_lab.domain.requests import InferenceRequest


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    logprobs: Any = None
    finish_reason: str | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Counts | None = None
    error: Any = None
    object: str | None = None


_FRAME = msgspec.json.Decoder(_Frame)


class OpenAICompletions:
    """One call of the endpoint."""

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call; as a stream, so that silence and a caller who left are noticed at once.

        ``best_of`` chooses among whole answers, which no server streams.
        """
        body: dict[str, Any] = {**request.parameters, "model": request.model, "prompt": request.inputs}
        stream = not body.get("best_of")
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return Outgoing("completions", body, stream=stream)

    def reader(self, request: InferenceRequest) -> "CompletionsReader":
        """A fresh reader of the answer."""
        return CompletionsReader(choices_of(request))


class CompletionsReader(BodyReader):
    """Chunks of a completion, or a whole one."""

    def event(self, name: str, data: bytes) -> Sequence[Event]:
        """The events of one chunk.

        Raises:
            InferenceError: The chunk is an error, or malformed.
        """
        if data == b"[DONE]":
            self.complete = True
            return [self.answer.finished()]
        if name == "error":
            raise frame_error(data)
        return self._frame(data)

    def whole(self, body: bytes) -> Sequence[Event]:
        """The events of a completion that came at once."""
        return [*self._frame(body), self.answer.finished()]

    def _frame(self, data: bytes) -> list[Chunk]:
        frame = decoded(_FRAME, data)
        if frame.error or frame.object == "error":
            raise frame_error(data)
        if frame.usage is not None:
            self.answer.usage = frame.usage.usage()
        chunks: list[Chunk] = []
        for choice in frame.choices or ():
            if choice.text or choice.logprobs:
                chunks.append(self.answer.chunk(Text(choice.text or ""), choice.index, choice.logprobs))
            if choice.finish_reason:
                self.answer.ended(choice.finish_reason, choice.index)
        return chunks
