"""The text that a tool is given: tools take one prompt, and no messages, files or parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from uia_lab.domain.errors import BadRequest, Unsupported
from uia_lab.domain.requests import InferenceRequest, Message

# What changes an answer's form and that no tool follows. How it is sampled is the tool's own affair.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "stop": (None, [], ""),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
}
_NAMES = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def prompt_of(request: InferenceRequest) -> str:
    """The prompt.

    Several messages become a transcript that ends where the assistant's next turn begins.

    Raises:
        Unsupported: A parameter that changes the answer's form.
        BadRequest: There is no text in it.
    """
    for name, neutral in _REFUSED.items():
        if request.parameters.get(name) not in neutral:
            raise Unsupported(f"command-line tools have no {name!r}; leave it out", param=name)
    if request.messages is None:
        text, param = request.inputs, "inputs"
    else:
        text, param = _transcript(request.messages), "messages"
    if not isinstance(text, str) or not text.strip():
        raise BadRequest("a command-line tool is given a text; there is none in this request", param=param)
    return text


def _transcript(messages: Sequence[Message]) -> str:
    turns = [(str(message.get("role", "user")), _text(message.get("content"))) for message in messages]
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1]
    lines = [f"{_NAMES[role]}: {text}" if role in _NAMES else text for role, text in turns if text]
    return "\n\n".join([*lines, "Assistant:"]) if lines else ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(
        part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    )
