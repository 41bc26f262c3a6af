"""Ollama's own dialect as an adapter speaks it: chat, generate and embed, as NDJSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.json_body import encode
from uia_lab.dialects.ndjson import LineReader
from uia_lab.dialects.ollama_request import arguments_of, messages_of
from uia_lab.dialects.openai_embeddings_upstream import embedded
from uia_lab.dialects.upstream import Outgoing, Reader, count_of
from uia_lab.dialects.upstream_errors import frame_error, upstream_error
from uia_lab.dialects.upstream_reader import BodyReader, decoded
from uia_lab.domain.errors import BackendFailed, InferenceError, Unsupported
from uia_lab.domain.events import Delta, Event, Reasoning, Text, ToolCall, Usage
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION


class Ollama:
    """Chat for messages, generate for a prompt, embed for embeddings."""

    name = "ollama"
    tasks = frozenset({TEXT_GENERATION, TEXT_EMBEDDING})
    features = frozenset({"tools", "vision", "response_format", "logprobs", "seed"})

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's answer.

        Raises:
            Unsupported: There is no form for something that was asked; the parameter is named.
        """
        if request.task == TEXT_EMBEDDING:
            return _embed(request)
        if request.task != TEXT_GENERATION:
            raise Unsupported(f"Ollama has no endpoint for {request.task}", param="task")
        body: dict[str, Any] = {"model": request.model, "stream": True, **arguments_of(request.parameters)}
        if request.messages is not None:
            return Outgoing("api/chat", body | {"messages": messages_of(request.messages)}, stream=True)
        if not isinstance(request.inputs, str):
            raise Unsupported("Ollama takes one prompt as text, no list and no token ids", param="inputs")
        return Outgoing("api/generate", body | {"prompt": request.inputs}, stream=True)

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:  # noqa: ARG002
        """A fresh reader of that call's answer."""
        if request.task == TEXT_EMBEDDING:
            return EmbedReader(count_of(request.inputs))
        return OllamaReader()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""
        return upstream_error(status, headers, body)


class _Function(msgspec.Struct):
    name: str
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Line(msgspec.Struct):
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    logprobs: list[Any] | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: Any = None


_LINE = msgspec.json.Decoder(_Line)


class OllamaReader(LineReader):
    """Lines of a chat or of a generation; the last one has the counts."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def line(self, data: bytes) -> Sequence[Event]:
        """The events of one line.

        Raises:
            InferenceError: The line is an error, or malformed.
        """
        line = decoded(_LINE, data)
        if line.error:
            raise frame_error(data)
        logprobs = {"content": line.logprobs} if line.logprobs else None
        events: list[Event] = []
        for delta in self._deltas(line):
            events.append(self.answer.chunk(delta, logprobs=logprobs))
            logprobs = None
        if line.done:
            self.complete = True
            if line.eval_count is not None or line.prompt_eval_count is not None:
                # A prompt that is cached whole is not counted again.
                self.answer.usage = Usage(line.prompt_eval_count or 0, line.eval_count or 0)
            reason = line.done_reason or "stop"
            self.answer.ended("tool_calls" if self._calls and reason == "stop" else reason)
            events.append(self.answer.finished())
        return events

    def _deltas(self, line: _Line) -> list[Delta]:
        message = line.message or _Message(line.response, line.thinking)
        found: list[Delta] = []
        if message.thinking:
            found.append(Reasoning(message.thinking))
        if message.content:
            found.append(Text(message.content))
        for call in message.tool_calls or ():
            arguments = encode(call.function.arguments or {}).decode()
            # Clients answer a call by its id, and Ollama gives none.
            name = call.id or f"call_{self._calls}"
            found.append(ToolCall(self._calls, name, call.function.name, arguments))
            self._calls += 1
        return found


class _Embedded(msgspec.Struct):
    embeddings: list[list[float]] | None = None
    prompt_eval_count: int | None = None
    error: Any = None


_EMBEDDED = msgspec.json.Decoder(_Embedded)


class EmbedReader(BodyReader):
    """One body with a vector for each text.

    Args:
        count: Texts that were given.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def event(self, name: str, data: bytes) -> Sequence[Event]:
        """No vectors are streamed.

        Raises:
            BackendFailed: Always.
        """
        raise BackendFailed(f"sent {name} events where vectors were asked for: {data[:80]!r}")

    def whole(self, body: bytes) -> Sequence[Event]:
        """The vectors, in the order of the texts.

        Raises:
            InferenceError: The body is an error, or has not one vector for each text.
        """
        answer = decoded(_EMBEDDED, body)
        if answer.error:
            raise frame_error(body)
        count = answer.prompt_eval_count
        usage = Usage(estimated=True) if count is None else Usage(count)
        return embedded(answer.embeddings or [], self._count, usage)


def _embed(request: InferenceRequest) -> Outgoing:
    inputs = request.inputs
    texts = inputs if isinstance(inputs, list) else [inputs]
    if not all(isinstance(text, str) for text in texts):
        raise Unsupported("Ollama embeds texts, no token ids", param="input")
    body: dict[str, Any] = {"model": request.model, "input": inputs}
    if (dimensions := request.parameters.get("dimensions")) is not None:
        body["dimensions"] = dimensions
    return Outgoing("api/embed", body)


OLLAMA = Ollama()
