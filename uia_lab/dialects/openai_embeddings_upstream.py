"""``POST embeddings`` of an upstream: a request to the wire, and vectors to a result."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from uia_lab.dialects.openai_chat_upstream import Counts
from uia_lab.dialects.upstream import Outgoing, count_of
from uia_lab.dialects.upstream_errors import frame_error
from uia_lab.dialects.upstream_reader import BodyReader, decoded
from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.events import Chunk, Event, Finished, Result, Usage
from uia_lab.domain.requests import InferenceRequest


class _Row(msgspec.Struct):
    embedding: str | list[float]
    index: int | None = None


class _Body(msgspec.Struct):
    data: list[_Row] | None = None
    usage: Counts | None = None
    error: Any = None
    object: str | None = None


_BODY = msgspec.json.Decoder(_Body)


class OpenAIEmbeddings:
    """One call of the endpoint."""

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call; in base64, as OpenAI's own client asks, which is a third of the numbers as text."""
        inputs = request.inputs
        body = {**request.parameters, "model": request.model, "input": inputs, "encoding_format": "base64"}
        return Outgoing("embeddings", body)

    def reader(self, request: InferenceRequest) -> "EmbeddingsReader":
        """A fresh reader of the answer."""
        return EmbeddingsReader(count_of(request.inputs))


class EmbeddingsReader(BodyReader):
    """One body with a vector for each text.

    Args:
        count: Texts that were given.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def event(self, name: str, data: bytes) -> Sequence[Event]:
        """No upstream streams vectors.

        Raises:
            BackendFailed: Always.
        """
        raise BackendFailed(f"sent {name} events where vectors were asked for: {data[:80]!r}")

    def whole(self, body: bytes) -> Sequence[Event]:
        """The vectors, in the order of the texts.

        Raises:
            InferenceError: The body is an error, or has not one vector for each text.
        """
        answer = decoded(_BODY, body)
        if answer.error or answer.object == "error":
            raise frame_error(body)
        rows = list(enumerate(answer.data or ()))
        rows.sort(key=lambda item: item[0] if item[1].index is None else item[1].index)
        usage = Usage(answer.usage.prompt_tokens or 0) if answer.usage is not None else Usage(estimated=True)
        return embedded([_vector(row.embedding) for _, row in rows], self._count, usage)


def embedded(vectors: list[list[float]], count: int, usage: Usage) -> list[Event]:
    """The events of vectors.

    Args:
        vectors: Those that came, in the order of the texts.
        count: Texts that were given.
        usage: Token counts.

    Raises:
        BackendFailed: There are more or fewer vectors than texts.
    """
    if len(vectors) != count:
        raise BackendFailed(f"gave {len(vectors)} vectors for {count} texts")
    return [Chunk(0, Result(vectors)), Finished(vectors, usage)]


def _vector(value: str | list[float]) -> list[float]:
    if isinstance(value, list):
        return value
    try:
        numbers: list[float] = np.frombuffer(base64.b64decode(value, validate=True), "<f4").tolist()
    except (binascii.Error, ValueError):
        raise BackendFailed("sent a vector that is no base64 of float32") from None
    return numbers
