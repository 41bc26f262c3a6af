"""The parameters of a generation, checked the same way for every engine."""

from collections.abc import Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest

DEFAULT_MAX_TOKENS = 256
MAX_CHOICES = 128
LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens", "max_length")
_RANGES = {  # name -> (least, most)
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0, 100.0),
    "repeat_penalty": (0.0, 100.0),
}


def number(options: Mapping[str, Any], name: str) -> float | None:
    """A number within the range its name has; None where it is absent.

    Raises:
        BadRequest: It is none, or out of range.
    """
    value = options.get(name)
    if value is None:
        return None
    least, most = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadRequest(f"{name} must be a number from {least:g} to {most:g}, not {value!r}", param=name)
    return value


def max_tokens(options: Mapping[str, Any]) -> int:
    """Tokens to generate at most; the first of the names in LENGTHS that is given counts."""
    for name in LENGTHS:
        if options.get(name) is not None:
            return whole(options, name, 1, 1 << 31)
    return DEFAULT_MAX_TOKENS


def prompts(inputs: Any) -> list[Any]:
    """The prompts in ``inputs``: a text, token ids, or a list of either."""
    if isinstance(inputs, str) or (isinstance(inputs, list) and inputs and is_token(inputs[0])):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest("inputs must be a prompt or a list of prompts", param="inputs")
    for prompt in inputs:
        if not isinstance(prompt, str) and not (
            isinstance(prompt, list) and all(is_token(token) for token in prompt)
        ):
            raise BadRequest("a prompt must be text or a list of token ids", param="inputs")
        if not prompt:
            raise BadRequest("the prompt is empty", param="inputs")
    return inputs


def is_token(value: Any) -> bool:
    """Whether a value can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool)


def stops(stop: Any) -> list[str]:
    """The stop strings in a request's ``stop``."""
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or len(found) > 16 or not all(isinstance(s, str) and s for s in found):
        raise BadRequest("stop must be a text, or a list of up to 16 of them, none empty", param="stop")
    return found


def logit_bias(bias: Any) -> list[list[float]]:
    """Pairs of a token id and what is added to its logit."""
    try:
        return [[int(token), float(value)] for token, value in bias.items()]
    except (AttributeError, TypeError, ValueError):
        raise BadRequest("logit_bias must map token ids to numbers", param="logit_bias") from None


def logprob_count(options: Mapping[str, Any]) -> int | None:
    """Alternatives asked for at each token; None when no log probabilities are asked for.

    Chat says ``logprobs: true, top_logprobs: k``, a raw completion ``logprobs: k``.
    """
    asked = options.get("logprobs")
    if asked is None or asked is False:
        if options.get("top_logprobs"):
            raise BadRequest("top_logprobs needs logprobs", param="top_logprobs")
        return None
    if options.get("top_logprobs") is not None:
        return whole(options, "top_logprobs", 0, 20)
    return 0 if asked is True else whole(options, "logprobs", 0, 20)


def whole(options: Mapping[str, Any], name: str, least: int, most: int, default: int = 0) -> int:
    """A whole number within bounds; ``default`` where it is absent."""
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = f"of at least {least}" if most > 1 << 30 else f"from {least} to {most}"
        raise BadRequest(f"{name} must be a whole number {limit}, not {value!r}", param=name)
    return value
