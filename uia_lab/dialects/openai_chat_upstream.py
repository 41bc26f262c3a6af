"""``POST chat/completions`` of an upstream: a request to the wire, and its chunks to events."""

from collections.abc import Sequence
from typing import Any

import msgspec

from uia_lab.dialects.json_body import encode
from uia_lab.dialects.upstream import Outgoing, count_of
from uia_lab.dialects.upstream_errors import frame_error
from uia_lab.dialects.upstream_reader import BodyReader, decoded
from uia_lab.domain.errors import Unsupported
from uia_lab.domain.events import Chunk, Delta, Event, Reasoning, Text, ToolCall, Usage
from uia_lab.domain.requests import InferenceRequest

# What only the older completions have; a chat would answer another question.
_COMPLETIONS_ONLY = ("best_of", "echo", "suffix")


class Counts(msgspec.Struct):
    """Token counts as OpenAI names them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    estimated: bool | None = None

    def usage(self) -> Usage:
        """Token counts of the domain; unknown ones are an estimate to be made."""
        if self.prompt_tokens is None and self.completion_tokens is None:
            return Usage(estimated=True)
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0, bool(self.estimated))


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    logprobs: Any = None
    finish_reason: str | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Counts | None = None
    error: Any = None
    object: str | None = None


_FRAME = msgspec.json.Decoder(_Frame)


class OpenAIChat:
    """One call of the endpoint."""

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call; always as a stream, so that silence and a caller who left are noticed at once.

        Raises:
            Unsupported: Several prompts, token ids, or what only completions have.
        """
        parameters = dict(request.parameters)
        messages: Any = request.messages
        if messages is None:
            if not isinstance(request.inputs, str):
                raise Unsupported("a chat takes one prompt as text, no list and no token ids", param="inputs")
            for name in _COMPLETIONS_ONLY:
                if parameters.get(name):
                    raise Unsupported(f"a chat has no {name!r}", param=name)
                parameters.pop(name, None)
            if type(count := parameters.get("logprobs")) is int:
                parameters |= {"logprobs": True, "top_logprobs": count}
            messages = [{"role": "user", "content": request.inputs}]
        body = parameters | {
            "model": request.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Outgoing("chat/completions", body, stream=True)

    def reader(self, request: InferenceRequest) -> "ChatReader":
        """A fresh reader of the answer."""
        return ChatReader(choices_of(request))


def choices_of(request: InferenceRequest) -> int:
    """How many choices a request asks for, over all of its prompts."""
    n = request.parameters.get("n")
    return (n if isinstance(n, int) else 1) * count_of(request.inputs)


class ChatReader(BodyReader):
    """Chunks of a chat, or a whole one.

    Args:
        choices: How many were asked for.
    """

    def __init__(self, choices: int = 1) -> None:
        super().__init__(choices)
        self._calls: dict[int, int] = {}

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
        """The events of a chat that came at once."""
        return [*self._frame(body), self.answer.finished()]

    def _frame(self, data: bytes) -> list[Chunk]:
        frame = decoded(_FRAME, data)
        if frame.error or frame.object == "error":
            raise frame_error(data)
        if frame.usage is not None:
            self.answer.usage = frame.usage.usage()
        chunks: list[Chunk] = []
        for choice in frame.choices or ():
            message = choice.delta or choice.message
            logprobs = choice.logprobs
            for delta in self._deltas(choice.index, message) if message is not None else ():
                chunks.append(self.answer.chunk(delta, choice.index, logprobs))
                logprobs = None
            if logprobs and isinstance(logprobs, dict) and logprobs.get("content"):
                # Tokens without text, such as the first bytes of a character.
                chunks.append(self.answer.chunk(Text(""), choice.index, logprobs))
            if choice.finish_reason:
                self.answer.ended(choice.finish_reason, choice.index)
        return chunks

    def _deltas(self, choice: int, message: _Message) -> list[Delta]:
        found: list[Delta] = []
        thought = message.reasoning_content or message.reasoning
        if isinstance(thought, str) and thought:
            found.append(Reasoning(thought))
        if isinstance(message.content, list):
            found += [delta for part in message.content if (delta := _part(part)) is not None]
        elif message.content:
            found.append(Text(message.content))
        if message.refusal:
            found.append(Text(message.refusal))
        for call in message.tool_calls or ():
            found.append(self._tool_call(choice, call))
        if message.function_call is not None:
            call = _ToolCall(0, None, message.function_call)
            found.append(self._tool_call(choice, call))
        return found

    def _tool_call(self, choice: int, call: _ToolCall) -> ToolCall:
        function = call.function or _Function()
        count = self._calls.get(choice, 0)
        index = call.index
        if index is None:
            # An upstream that does not number them sends each one whole, with its name.
            index = count if function.name or not count else count - 1
        self._calls[choice] = max(count, index + 1)
        arguments = function.arguments
        if arguments is not None and not isinstance(arguments, str):
            arguments = encode(arguments).decode()
        return ToolCall(index, call.id, function.name, arguments or "")


def _part(part: Any) -> Delta | None:
    """A part of a message that is a list; reasoning models of Mistral send their thoughts so."""
    if not isinstance(part, dict):
        return None
    if part.get("type") == "thinking":
        inner = part.get("thinking")
        pieces = inner if isinstance(inner, list) else [{"text": inner}]
        return Reasoning("".join(str(piece.get("text") or "") for piece in pieces if isinstance(piece, dict)))
    text = part.get("text")
    return Text(text) if isinstance(text, str) and text else None
