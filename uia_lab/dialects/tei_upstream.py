"""Text Embeddings Inference: its OpenAI face for embeddings, which counts tokens, its own for labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uia_lab.dialects.openai_embeddings_upstream import OpenAIEmbeddings
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_errors import upstream_error
from uia_lab.dialects.upstream_reader import BodyReader, decoded
from uia_lab.domain.errors import BackendFailed, InferenceError, Unsupported
from uia_lab.domain.events import Chunk, Event, Finished, Result
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_CLASSIFICATION, TEXT_EMBEDDING


class TextEmbeddingsInference:
    """Embeddings, or labels with scores where the model is a classifier."""

    name = "tei"
    tasks = frozenset({TEXT_EMBEDDING, TEXT_CLASSIFICATION})
    features: frozenset[str] = frozenset()

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's answer.

        Raises:
            Unsupported: Another task, or token ids to classify.
        """
        if request.task == TEXT_EMBEDDING:
            found = OpenAIEmbeddings().outgoing(request)
            return Outgoing(f"v1/{found.path}", found.body)
        if request.task != TEXT_CLASSIFICATION:
            raise Unsupported(f"it has no endpoint for {request.task}", param="task")
        inputs = request.inputs
        texts = inputs if isinstance(inputs, list) else [inputs]
        if not all(isinstance(text, str) for text in texts):
            raise Unsupported("it classifies a text or a list of texts", param="inputs")
        # A list of its own for each text: two strings in one would be a pair.
        body = {"inputs": [[text] for text in texts], "truncate": bool(request.parameters.get("truncate"))}
        return Outgoing("predict", body)

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:  # noqa: ARG002
        """A fresh reader of that call's answer."""
        if request.task == TEXT_EMBEDDING:
            return OpenAIEmbeddings().reader(request)
        return LabelsReader(request.inputs)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""
        return upstream_error(status, headers, body)


class _Label(msgspec.Struct):
    label: str
    score: float


_LABELS = msgspec.json.Decoder(list[list[_Label]])


class LabelsReader(BodyReader):
    """One body with the labels of each text.

    Args:
        inputs: The text or texts; the labels of a single one are no list of lists.
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self._inputs = inputs

    def event(self, name: str, data: bytes) -> Sequence[Event]:
        """No labels are streamed.

        Raises:
            BackendFailed: Always.
        """
        raise BackendFailed(f"sent {name} events where labels were asked for: {data[:80]!r}")

    def whole(self, body: bytes) -> Sequence[Event]:
        """``[{"label", "score"}]`` of each text, the likeliest first.

        Raises:
            BackendFailed: The body has not the labels of each text.
        """
        count = len(self._inputs) if isinstance(self._inputs, list) else 1
        rows = decoded(_LABELS, body)
        if len(rows) != count:
            raise BackendFailed(f"gave the labels of {len(rows)} texts for {count}")
        found = [
            [{"label": item.label, "score": item.score} for item in sorted(row, key=lambda it: -it.score)]
            for row in rows
        ]
        result: Any = found if isinstance(self._inputs, list) else found[0]
        return [Chunk(0, Result(result)), Finished(result)]


TEI = TextEmbeddingsInference()
