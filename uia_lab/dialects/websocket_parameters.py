"""The ``parameters`` of a message: what the HTTP doors know of a task, checked as they check it.

What they do not know is ignored, as there: an upstream takes many more fields, and some of them choose
another model or another price, which a key's limits would never see.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from uia_lab.dialects.fields import Fields
from uia_lab.dialects.openai_call import MAX_ANSWERS, MAX_CHOICES, SAMPLING, checked, texts
from uia_lab.domain.errors import BadRequest
from uia_lab.domain.tasks import IMAGE_GENERATION, TEXT_EMBEDDING, TEXT_GENERATION

MAX_TOKENS = 10_000_000
_LENGTHS = ("max_length", "max_new_tokens")
"""Other names of ``max_tokens``, known from transformers; limits and backends know the one."""
_OF_IMAGES = (
    "size",
    "quality",
    "style",
    "background",
    "moderation",
    "output_format",
    "response_format",
    "user",
)


def parameters_of(task: str, given: Mapping[str, Any], inputs: Any) -> dict[str, Any]:
    """The parameters that a backend gets.

    Args:
        task: Canonical name of the task.
        given: The parameters as they came.
        inputs: The prompts; None where chat messages are asked about.

    Raises:
        BadRequest: One of the wrong type or out of range, or more answers than are given at once.
    """
    fields = Fields(given, "parameters.")
    read = _READERS.get(task)
    if read is None:
        # No upstream is asked for these, only functions and models of our own.
        return {**given, **checked(SAMPLING, fields)}
    values = {name: value for name, value in read(fields).items() if value is not None}
    if task == TEXT_GENERATION and inputs is not None:
        _, prompts = texts(Fields({"inputs": inputs}), "inputs")
        if prompts * values.get("n", 1) > MAX_ANSWERS:
            raise BadRequest(f"more than {MAX_ANSWERS} answers are asked for at once", param="parameters.n")
    return values


def _generation(fields: Fields) -> dict[str, Any]:
    lengths = {
        name: fields.whole(name, 1, MAX_TOKENS) for name in ("max_tokens", "max_completion_tokens", *_LENGTHS)
    }
    others = [value for name in _LENGTHS if (value := lengths.pop(name)) is not None]
    if others and not any(lengths.values()):
        lengths["max_tokens"] = others[0]
    found: dict[str, Any] = {
        **checked(SAMPLING, fields),
        **lengths,
        "user": fields.text("user", 512),
        "reasoning_effort": fields.text("reasoning_effort", 32),
        "verbosity": fields.text("verbosity", 32),
        "audio": fields.mapping("audio"),
        "response_format": fields.mapping("response_format"),
        "modalities": fields.strings("modalities"),
        "tools": fields.objects("tools") or None,
        "functions": fields.objects("functions") or None,
        # Of a prompt, which takes a number in logprobs where a chat takes true.
        "logprobs": _logprobs(fields),
        "top_logprobs": fields.whole("top_logprobs", 0, 20),
        "echo": fields.flag("echo") or None,
        "suffix": fields.text("suffix", 1_000_000) if fields.values.get("suffix") else None,
    }
    if found["tools"]:
        found["tool_choice"] = fields.values.get("tool_choice")
        found["parallel_tool_calls"] = fields.values.get("parallel_tool_calls")
    if found["functions"]:
        found["function_call"] = fields.values.get("function_call")
    best_of, n = fields.whole("best_of", 1, MAX_CHOICES), found.get("n", 1)
    if best_of is not None and best_of < n:
        raise BadRequest(f"parameters.best_of must be at least n, which is {n}", param="parameters.best_of")
    found["best_of"] = best_of if best_of is not None and best_of > n else None
    return found


def _logprobs(fields: Fields) -> bool | int | None:
    value = fields.values.get("logprobs")
    return fields.flag("logprobs") or None if isinstance(value, bool) else fields.whole("logprobs", 0, 20)


def _embedding(fields: Fields) -> dict[str, Any]:
    return {"dimensions": fields.whole("dimensions", 1, 65_536)}


def _images(fields: Fields) -> dict[str, Any]:
    return {
        **{name: fields.text(name, 512) for name in _OF_IMAGES},
        "n": fields.whole("n", 1, 10),
        "output_compression": fields.whole("output_compression", 0, 100),
    }


_READERS: Mapping[str, Callable[[Fields], dict[str, Any]]] = MappingProxyType(
    {TEXT_GENERATION: _generation, TEXT_EMBEDDING: _embedding, IMAGE_GENERATION: _images}
)
