"""The inference door of OpenAI's Responses."""

import dataclasses
from typing import Any

from uia_lab.dialects.answer import Answer
from uia_lab.dialects.openai_call import Call
from uia_lab.dialects.responses import answers, calls
from uia_lab.doors.answering import AnsweringDoor, Rendering
from uia_lab.doors.base import Fault


class ResponsesDoor(AnsweringDoor):
    """``POST /v1/responses {model?, input, stream?, max_output_tokens?, uia?}``: OpenAI's responses."""

    def fault(self, error: BaseException | None, status: int = 500) -> Fault:
        """What may be told of an error, with the field at fault by the name the client gave it."""
        fault = super().fault(error, status)
        return dataclasses.replace(fault, param=calls.PARAMS.get(fault.param or "", fault.param))

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return calls.parse(body)

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """A response."""
        return answers.whole(call, self.request_id, answer)

    def rendering(self, call: Call, backend_id: str) -> answers.Stream:
        """The events of a response."""
        return answers.Stream(call, self.request_id, backend_id)

    def broken(self, fault: Fault, rendering: Rendering) -> bytes:
        """An ``error`` and the failed response, numbered on."""
        assert isinstance(rendering, answers.Stream)
        return rendering.failed(fault.code, fault.message, fault.param)
