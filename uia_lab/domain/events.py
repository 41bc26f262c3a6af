"""The events of one answer: ``Started (Chunk* Switched)* Chunk* Finished``, or one exception.

Numbering: ``Chunk.index`` counts chunks of the whole answer from 0, across a switch of backends.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A piece of generated text."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """A piece of the model's visible reasoning, which is not part of the answer.

    Args:
        text: What is shown.
        signature: ``dialect:seal``, the seal by which the provider of that dialect knows its own reasoning
            when a later turn gives it back; comes with the last piece of a block of reasoning and ends it.
    """

    text: str
    signature: str | None = None


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call"):
    """A piece of a tool call, in the shape the OpenAI dialect streams it."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Result(msgspec.Struct, frozen=True, tag="result"):
    """A whole result of a task that does not stream text (an embedding, labels)."""

    value: Any


Delta: TypeAlias = Text | Reasoning | ToolCall | Result


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one answer.

    Args:
        input_tokens: Tokens of the prompt, by the tokenizer or the upstream, those of its cache included.
        output_tokens: Tokens generated, those of reasoning included.
        estimated: True where neither a tokenizer nor an upstream gave the figures.
        cached_tokens: Tokens of the prompt that came from the upstream's prompt cache.
        cache_creation_tokens: Tokens of the prompt that were written to it.
        reasoning_tokens: Tokens of reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


class Attempted(msgspec.Struct, frozen=True):
    """One attempt of a request, as its trail shows it.

    Args:
        backend_id: Who was tried.
        outcome: ``ok``, ``failed``, ``cancelled`` or ``rejected``.
        latency_ms: From the lease to the end of the attempt.
        error: Code of the error, if it failed.
        message: Text of the error, if it failed.
    """

    backend_id: str
    outcome: str
    latency_ms: float
    error: str | None = None
    message: str | None = None


class Started(msgspec.Struct, frozen=True):
    """A backend answers: comes with the first content, when no other can take over silently any more.

    Args:
        backend_id: Who serves.
        attempt: 1 for the first backend tried.
        decision: Why this one, as :meth:`uia_lab.routing.decision.Decision.to_dict` gives it.
    """

    backend_id: str
    attempt: int = 1
    decision: Mapping[str, Any] = {}


class Chunk(msgspec.Struct, frozen=True):
    """One piece of the answer.

    Args:
        index: Position in the whole answer, from 0.
        delta: What it adds.
        choice: Which of the ``n`` answers it belongs to.
        logprobs: The dialect-neutral (OpenAI-shaped) log probabilities of its tokens, where asked for.
        wire: Dialect and raw bytes when the upstream's bytes may be relayed unchanged.
    """

    index: int
    delta: Delta
    choice: int = 0
    logprobs: Any = None
    wire: tuple[str, bytes] | None = None


class Switched(msgspec.Struct, frozen=True):
    """The answer goes on at another backend, exactly where the first one stopped."""

    from_id: str
    to_id: str
    reason: str
    at_index: int


class Finished(msgspec.Struct, frozen=True):
    """The proper end of an answer; a stream without it has failed.

    Args:
        result: The whole answer: the text of choice 0, or the task's result.
        usage: Token counts; an adapter that was told none leaves them out, and they are estimated.
        finish_reason: ``stop``, ``length``, ``tool_calls`` or ``content_filter``.
        attempts: Every backend tried, in order.
        finish_reasons: Where several choices were asked for, the reason of each.
        stop_sequence: The stop string that ended it, where the upstream says.
    """

    result: Any
    usage: Usage = Usage(estimated=True)
    finish_reason: str = "stop"
    attempts: tuple[Attempted, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    stop_sequence: str | None = None


Event: TypeAlias = Started | Chunk | Switched | Finished
