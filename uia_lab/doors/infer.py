"""``POST /infer``: any task by its name."""

from typing import Any

from uia_lab.dialects import uia_infer
from uia_lab.dialects.answer import Answer
from uia_lab.dialects.openai_call import Call
from uia_lab.doors.answering import AnsweringDoor, Rendering


class InferDoor(AnsweringDoor):
    """``POST /infer {task, model?, inputs?, messages?, parameters?, routing?, stream?}``: any task."""

    def parse(self, body: bytes) -> Call:
        """The call in the body."""
        return uia_infer.parse(body)

    def whole(self, call: Call, answer: Answer) -> dict[str, Any]:
        """The result with its usage and who gave it."""
        return uia_infer.whole(call, self.request_id, answer)

    def rendering(self, call: Call, backend_id: str) -> Rendering:
        """The pieces as events."""
        del call
        return uia_infer.Stream(self.request_id, backend_id)
