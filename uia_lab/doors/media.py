"""The doors for images and recordings, in OpenAI's dialect."""

from typing import Any, ClassVar

from uia_lab.dialects import openai_images, openai_transcriptions
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.json_body import encode
from uia_lab.dialects.openai_call import Call
from uia_lab.doors.answering import AnsweringDoor, Rendering
from uia_lab.doors.forms import KEPT_TYPE, multipart

MAX_RECORDING = 25 * 1024 * 1024


class ImagesDoor(AnsweringDoor):
    """``POST /v1/images/generations {model?, prompt, n?, size?}``: OpenAI's images."""

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return openai_images.parse(body)

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:  # noqa: ARG002
        """The images."""
        return openai_images.whole(answer)


class TranscriptionsDoor(AnsweringDoor):
    """``POST /v1/audio/transcriptions {file, model?, response_format?, stream?}``: a form, as OpenAI's."""

    max_body: ClassVar[int] = MAX_RECORDING

    def parse(self, body: bytes) -> Call:
        """The call in the form."""
        headers = self.request.headers
        content_type = headers.get("Content-Type") or headers.get(KEPT_TYPE, "")
        return openai_transcriptions.parse(*multipart(content_type, body))

    def written(self, call: Call, answer: Answer) -> bytes:
        """The transcript, in the format that was asked for."""
        made = openai_transcriptions.whole(call, answer)
        if isinstance(made, str):
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            return made.encode(errors="replace")
        return encode(made)

    def rendering(self, call: Call, backend_id: str) -> Rendering:  # noqa: ARG002
        """The events of a transcript."""
        return openai_transcriptions.Stream()
