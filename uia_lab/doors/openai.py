"""The inference doors of OpenAI's dialect."""

from typing import Any

from uia_lab.dialects import openai_chat, openai_completions, openai_embeddings
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.openai_call import Call
from uia_lab.doors.answering import AnsweringDoor, Rendering


class ChatDoor(AnsweringDoor):
    """``POST /v1/chat/completions {model?, messages, stream?, max_tokens?, uia?}``: OpenAI's chat."""

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return openai_chat.parse(body)

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """A ``chat.completion``."""
        return openai_chat.whole(call, self.request_id, answer)

    def rendering(self, call: Call, backend_id: str) -> Rendering:
        """Chunks of a ``chat.completion``."""
        return openai_chat.Stream(call, self.request_id, backend_id)


class CompletionsDoor(AnsweringDoor):
    """``POST /v1/completions {model?, prompt, stream?, max_tokens?, uia?}``: OpenAI's completions."""

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return openai_completions.parse(body)

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """A ``text_completion``."""
        return openai_completions.whole(call, self.request_id, answer)

    def rendering(self, call: Call, backend_id: str) -> Rendering:
        """Pieces of a ``text_completion``."""
        return openai_completions.Stream(call, self.request_id, backend_id)


class EmbeddingsDoor(AnsweringDoor):
    """``POST /v1/embeddings {model?, input, encoding_format?, dimensions?, uia?}``: OpenAI's embeddings."""

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return openai_embeddings.parse(body)

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """A list of embeddings."""
        return openai_embeddings.whole(call, answer)
