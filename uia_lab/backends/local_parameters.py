"""Which parameters a local model follows, and which it must refuse instead of dropping."""

import base64
from typing import Any

from uia_lab.domain.audio import Audio
from uia_lab.domain.errors import Unsupported
from uia_lab.domain.requests import InferenceRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.engine.sources import ModelSource

_REFUSED = frozenset(
    {
        "audio",
        "best_of",
        "function_call",
        "functions",
        "grammar",
        "guided_choice",
        "guided_json",
        "guided_regex",
        "images",
        "json_schema",
        "modalities",
        "num_beams",
        "prediction",
        "response_format",
        "suffix",
        "tool_choice",
        "tools",
        "web_search_options",
    }
)
# Values that ask for nothing beyond what happens anyway.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "num_beams": (1,),
    "response_format": ({"type": "text"}, "text"),
    "tool_choice": ("none", "auto"),
}


def refuse_unsupported(request: InferenceRequest, source: ModelSource) -> None:
    """Refuses what the model cannot do; unknown and harmless parameters (``user``) pass.

    Raises:
        Unsupported: ``param`` names what it cannot do.
    """
    if request.task != source.task:
        raise Unsupported(f"{source.name} is for {source.task}, not for {request.task}", param="task")
    for name, value in request.parameters.items():
        # Other tasks name what they know, and refuse the rest themselves.
        if (
            source.task == TEXT_GENERATION
            and name in _REFUSED
            and value
            and value not in _HARMLESS.get(name, ())
        ):
            raise Unsupported(f"{source.name} on this machine cannot do {name!r}", param=name)
    for message in request.messages or ():
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise Unsupported(f"{source.name} reads text only, not {kind!r} parts", param="messages")


def for_worker(request: InferenceRequest) -> tuple[Any, dict[str, Any]]:
    """Inputs and parameters as they cross to a worker: data only.

    Raises:
        Unsupported: A form of transcript that no local model writes.
    """
    inputs, parameters = request.inputs, dict(request.parameters)
    if isinstance(inputs, Audio):
        inputs = base64.b64encode(inputs.data).decode()
        wanted = parameters.pop("response_format", "json")
        if wanted not in ("json", "text"):
            raise Unsupported(
                f"a local model transcribes to json or text, not to {wanted}", param="response_format"
            )
        if not parameters.get("temperature"):
            parameters.pop("temperature", None)
    return inputs, parameters
