"""The inference door of Anthropic's dialect."""

from typing import Any, ClassVar

from uia_lab.dialects.answer import Answer
from uia_lab.dialects.anthropic import BETA, answers, calls
from uia_lab.dialects.anthropic.errors import envelope
from uia_lab.dialects.openai_call import Call
from uia_lab.doors.answering import AnsweringDoor, Rendering
from uia_lab.doors.base import Fault


class MessagesDoor(AnsweringDoor):
    """``POST /v1/messages {model, messages, max_tokens, stream?}``: Anthropic's messages."""

    waiting: ClassVar[bytes] = answers.PING

    def set_default_headers(self) -> None:
        """Headers of every answer; Anthropic's clients look for the id under a name of their own."""
        super().set_default_headers()
        self.set_header("request-id", self.request_id)

    def envelope(self, fault: Fault) -> Any:
        """The body of an error answer."""
        return envelope(fault.status, fault.message, self.request_id)

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return calls.parse(body, self.request.headers.get(BETA))

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """A message."""
        return answers.whole(call, self.request_id, answer)

    def rendering(self, call: Call, backend_id: str) -> Rendering:
        """The events of a message."""
        return answers.Stream(call, self.request_id, backend_id)
