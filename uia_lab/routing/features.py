"""What a request needs a backend to be able to do, beyond its task and model."""

from collections.abc import Iterable, Mapping
from typing import Any

from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION

# Parameters that only some backends follow, and the feature each needs. Others are hints (seed), or
# checked by the adapter that knows better.
_PARAMETERS = {
    "tools": "tools",
    "functions": "functions",
    "response_format": "response_format",
    "logprobs": "logprobs",
    "audio": "audio_output",
}
# Parts of a message by the name of their type.
_PARTS = {"image_url": "vision", "input_audio": "audio", "file": "files"}
_PLAIN_TEXT: tuple[Any, ...] = ({"type": "text"}, "text")

NAMES = {
    "tools": "tools",
    "functions": "functions",
    "response_format": "response_format",
    "logprobs": "logprobs",
    "audio_output": "audio",
    "vision": "messages",
    "audio": "messages",
    "files": "messages",
}
"""The parameter that asks for each feature."""
WORDS = {
    "audio_output": "audio as an answer",
    "vision": "images in messages",
    "audio": "recordings in messages",
    "files": "files in messages",
}
"""What people call the features that are not named as their parameter is."""


def needed_features(request: InferenceRequest) -> frozenset[str]:
    """The features a backend must have to do all that a request asks for."""
    if request.task != TEXT_GENERATION:
        return frozenset()
    needed = {
        feature
        for name, feature in _PARAMETERS.items()
        if (value := request.parameters.get(name))
        and not (name == "response_format" and value in _PLAIN_TEXT)
    }
    if request.messages is not None:
        needed |= {_PARTS[kind] for kind in _part_types(request.messages) if kind in _PARTS}
    return frozenset(needed)


def _part_types(messages: Iterable[Any]) -> Iterable[str]:
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if isinstance(kind, str):
                yield kind
