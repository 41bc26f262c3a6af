"""The messages of ``/ws`` that answer, to events and back, for both of its ends."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from uia_lab.dialects.answer import Answer
from uia_lab.dialects.openai_call import usage_object
from uia_lab.dialects.upstream_errors import open_to_others
from uia_lab.domain.errors import (
    BackendFailed,
    BackendTimeout,
    Cancelled,
    DeadlineExceeded,
    InferenceError,
    NotAllowed,
    Unauthenticated,
)
from uia_lab.domain.events import Chunk, Event, Finished, Reasoning, Result, Text, ToolCall, Usage


def piece_of(chunk: Chunk) -> dict[str, Any]:
    """The fields of a chunk: ``chunk`` is its text or result, so that joining them gives the answer.

    Reasoning and tool calls are no part of the answer: they come beside an empty ``chunk``.
    """
    delta = chunk.delta
    fields: dict[str, Any] = {"index": chunk.index}
    if isinstance(delta, Reasoning):
        fields |= {"chunk": "", "reasoning": delta.text}
    elif isinstance(delta, ToolCall):
        fields |= {"chunk": "", "tool_call": delta}
    else:
        fields["chunk"] = delta.text if isinstance(delta, Text) else delta.value
    if chunk.choice:
        fields["choice"] = chunk.choice
    if chunk.logprobs:
        fields["logprobs"] = chunk.logprobs
    return fields


def end_of(finished: Finished) -> dict[str, Any]:
    """The fields that every proper end has."""
    fields = {"usage": usage_object(finished.usage), "finish_reason": finished.finish_reason}
    if len(finished.finish_reasons) > 1:
        fields["finish_reasons"] = list(finished.finish_reasons)
    return fields


def whole_of(answer: Answer) -> dict[str, Any]:
    """The fields of a whole answer: ``result``, and beside it what only some answers have."""
    first = answer.choices[0]
    result = answer.finished.result
    fields = {"result": first.text if result is None else result, **end_of(answer.finished)}
    if len(answer.choices) > 1:
        fields["choices"] = [choice.text for choice in answer.choices]
    if first.tool_calls:
        fields["tool_calls"] = list(first.tool_calls.values())
    if first.reasoning:
        fields["reasoning"] = "".join(first.reasoning)
    return fields


class AnswerReader:
    """Turns the messages of one answer into events, from a worker or from a server elsewhere."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._index = 0

    def feed(self, name: str, body: Mapping[str, Any]) -> Iterator[Event]:
        """The events in a message; the last of an answer is ``Finished``.

        Args:
            name: ``chunk``, ``complete``, ``result`` or ``fail``; anything else is a server's error.
            body: The message.

        Raises:
            InferenceError: The other side failed, or broke the protocol.
        """
        match name:
            case "chunk":
                yield self._chunk(body)
            case "complete":
                yield self._finished(_joined(self._pieces), body)
            case "result":
                if "result" not in body:
                    raise BackendFailed("an answer without result")
                value = body["result"]
                if not self._index:
                    yield Chunk(0, Text(value) if isinstance(value, str) else Result(value))
                yield self._finished(value, body)
            case "fail":
                raise _of_worker(error_of(body))
            case _:
                raise _of_server(error_of(body))

    def _chunk(self, body: Mapping[str, Any]) -> Chunk:
        value, choice = body.get("chunk"), body.get("choice", 0)
        if value is None or type(choice) is not int or not 0 <= choice < 128:
            raise BackendFailed("a chunk without content")
        try:
            if (thought := body.get("reasoning")) is not None:
                delta: Text | Reasoning | ToolCall | Result = Reasoning(str(thought))
            elif (call := body.get("tool_call")) is not None:
                delta = msgspec.convert(call, ToolCall)
            else:
                delta = Text(value) if isinstance(value, str) else Result(value)
                if choice == 0:
                    self._pieces.append(value)
        except msgspec.ValidationError as error:
            raise BackendFailed(f"a tool call that cannot be read: {error}") from None
        chunk = Chunk(self._index, delta, choice, body.get("logprobs"))
        self._index += 1
        return chunk

    def _finished(self, result: Any, body: Mapping[str, Any]) -> Finished:
        reason, reasons = body.get("finish_reason"), body.get("finish_reasons")
        return Finished(
            result,
            _usage(body.get("usage")),
            reason if isinstance(reason, str) else "stop",
            finish_reasons=tuple(map(str, reasons)) if isinstance(reasons, list) else (),
        )


def error_of(body: Mapping[str, Any]) -> InferenceError:
    """The typed error of an ``inference_error``, ``error`` or ``fail``; an unknown code is a fault."""
    cls = _by_code().get(str(body.get("code")), BackendFailed)
    message = body.get("error") or body.get("message")
    text = message[:2000] if isinstance(message, str) else "it failed and did not say why"
    param, later = body.get("param"), body.get("retry_after")
    return cls(
        text,
        param=param if isinstance(param, str) else None,
        retry_after=float(later) if isinstance(later, (int, float)) and 0 <= later < 1e6 else None,
    )


def error_fields(error: InferenceError) -> dict[str, Any]:
    """The fields of an error beside its text."""
    fields = {"code": error.code, "param": error.param, "retry_after": error.retry_after}
    return {name: value for name, value in fields.items() if value is not None}


def _of_worker(error: InferenceError) -> InferenceError:
    """What a worker may say of a request; who may ask, and who cancels, is not its to say."""
    foreign = (Unauthenticated, NotAllowed, Cancelled, DeadlineExceeded)
    return BackendFailed(error.message) if isinstance(error, foreign) else error


def _of_server(error: InferenceError) -> InferenceError:
    """What the end of a request at a server elsewhere means here, where it may go on at another one."""
    if isinstance(error, Cancelled):
        return BackendFailed(f"it was cancelled there: {error.message}")
    if isinstance(error, DeadlineExceeded):
        return BackendTimeout(f"it took too long there: {error.message}")
    return open_to_others(error)


def _by_code() -> dict[str, type[InferenceError]]:
    return {cls.code: cls for cls in InferenceError.__subclasses__()}


def _usage(value: Any) -> Usage:
    """Token counts under OpenAI's names or ours; an estimate is made where they are absent."""
    if not isinstance(value, dict):
        return Usage(estimated=True)
    counts = []
    for ours, theirs in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
        count = value.get(ours, value.get(theirs, 0))
        counts.append(count if type(count) is int and 0 <= count < 2**53 else 0)
    return Usage(counts[0], counts[1], estimated=bool(value.get("estimated")))


def _joined(pieces: list[Any]) -> Any:
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return pieces[0] if len(pieces) == 1 else pieces
