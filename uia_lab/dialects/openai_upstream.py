"""OpenAI's dialect as an adapter speaks it: which endpoint a request goes to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from uia_lab.dialects.openai_chat_upstream import OpenAIChat
from uia_lab.dialects.openai_completions_upstream import OpenAICompletions
from uia_lab.dialects.openai_embeddings_upstream import OpenAIEmbeddings
from uia_lab.dialects.openai_images import OpenAIImages
from uia_lab.dialects.openai_transcriptions import OpenAITranscriptions
from uia_lab.dialects.upstream import Outgoing, Reader
from uia_lab.dialects.upstream_errors import upstream_error
from uia_lab.domain.errors import InferenceError, Unsupported
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import AUDIO_TRANSCRIPTION, IMAGE_GENERATION, TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.routing.features import NAMES

_Endpoint = OpenAIChat | OpenAICompletions | OpenAIEmbeddings | OpenAIImages | OpenAITranscriptions
_OTHERS: Mapping[str, Callable[[], _Endpoint]] = {
    TEXT_EMBEDDING: OpenAIEmbeddings,
    IMAGE_GENERATION: OpenAIImages,
    AUDIO_TRANSCRIPTION: OpenAITranscriptions,
}


@dataclass(frozen=True)
class OpenAI:
    """Chat, completions, embeddings, images and transcripts.

    Args:
        name: Name of the dialect.
        completions: Whether the upstream still has the older completions; without them a prompt becomes the
            one message of a chat.
        tasks: Tasks it can carry.
        features: What beyond plain text generation it has a form for; a server without one says so itself.
    """

    name: str
    completions: bool
    tasks: frozenset[str] = field(
        default=frozenset({TEXT_GENERATION, TEXT_EMBEDDING, IMAGE_GENERATION, AUDIO_TRANSCRIPTION})
    )
    features: frozenset[str] = field(default=frozenset({*NAMES, "seed"}))

    def outgoing(self, request: InferenceRequest) -> Outgoing:
        """The call that asks for a request's answer.

        Raises:
            Unsupported: There is no form for something that was asked; the parameter is named.
        """
        return self._endpoint(request).outgoing(request)

    def reader(self, request: InferenceRequest, outgoing: Outgoing) -> Reader:  # noqa: ARG002
        """A fresh reader of that call's answer."""
        return self._endpoint(request).reader(request)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> InferenceError:
        """The typed error of an answer with a status of 400 or more."""
        return upstream_error(status, headers, body)

    def _endpoint(self, request: InferenceRequest) -> _Endpoint:
        if (other := _OTHERS.get(request.task)) is not None:
            return other()
        if request.task != TEXT_GENERATION:
            raise Unsupported(f"{self.name} has no endpoint for {request.task}", param="task")
        if request.messages is None and self.completions:
            return OpenAICompletions()
        return OpenAIChat()


OPENAI = OpenAI("openai", completions=True)
OPENAI_CHAT = OpenAI("openai-chat", completions=False)
