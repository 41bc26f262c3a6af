"""The calls of llama.cpp that a request comes down to."""

from collections.abc import Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest, Unsupported
from uia_lab.engine.frames import Submit
from uia_lab.engine.sampling import (
    MAX_CHOICES,
    logit_bias,
    logprob_count,
    max_tokens,
    number,
    prompts,
    stops,
    whole,
)

_NUMBERS = {  # name here -> name of llama.cpp
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repeat_penalty",
    "repeat_penalty": "repeat_penalty",
}


class Call:
    """One call of llama.cpp: which prompt it is for, and the body."""

    __slots__ = ("body", "chat", "echo", "prompt", "top")

    def __init__(self, prompt: int, body: dict[str, Any], *, chat: bool, echo: str, top: int) -> None:
        self.prompt = prompt
        self.body = body
        self.chat = chat
        self.echo = echo
        self.top = top


def plan(job: Submit) -> list[Call]:
    """The calls a request comes down to; the place in the list is the choice's number.

    Raises:
        BadRequest: A value that is not what its name stands for.
        Unsupported: Something llama.cpp does not give.
    """
    options = job.parameters
    body = _sampling(options)
    count = whole(options, "n", 1, MAX_CHOICES, default=1)
    top = logprob_count(options)
    # "echo" repeats the prompt; "return_full_text" is its name in transformers.
    echo = bool(options.get("echo") or options.get("return_full_text"))
    chat = job.messages is not None
    if chat:
        if not job.messages:
            raise BadRequest("messages is empty", param="messages")
        asked: list[Any] = [job.messages]
        if top is not None:
            body["logprobs"] = True
            body["top_logprobs"] = max(top, 1)
    else:
        asked = prompts(job.inputs)
        if top is not None:
            body["n_probs"] = max(top, 1)
        if echo and top is not None:
            raise Unsupported(
                "the prompt's log probabilities are not known: no echo with logprobs", param="echo"
            )
        if echo and not all(isinstance(prompt, str) for prompt in asked):
            raise Unsupported("echo needs the prompt as text", param="echo")
    if len(asked) * count > MAX_CHOICES:
        raise BadRequest(f"{len(asked)} prompts times n={count} is over {MAX_CHOICES} answers", param="n")
    calls = []
    for index, prompt in enumerate(asked):
        for turn in range(count):
            own = {**body, "messages" if chat else "prompt": prompt}
            if "seed" in own:
                # With one seed for all of them, the answers would be the same.
                own["seed"] = (own["seed"] + turn) % 0xFFFFFFFF
            text = prompt if echo and isinstance(prompt, str) else ""
            calls.append(Call(index, own, chat=chat, echo=text, top=top or 0))
    return calls


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the body that is the same for every prompt."""
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    body["max_tokens"] = max_tokens(options)
    for name, theirs in _NUMBERS.items():
        if (value := number(options, name)) is not None:
            body[theirs] = value
    if options.get("do_sample") is False:
        body["temperature"] = 0
    if options.get("top_k") is not None:
        body["top_k"] = whole(options, "top_k", 0, 1 << 31)
    if options.get("seed") is not None:
        # llama.cpp has 32 bits, and reads the highest number as "random".
        body["seed"] = whole(options, "seed", -(1 << 63), (1 << 64) - 1) % 0xFFFFFFFF
        # A prompt partly from the cache is computed in other batch sizes, and rounds differently.
        body["cache_prompt"] = False
    if options.get("stop") is not None:
        body["stop"] = stops(options["stop"])
    if options.get("logit_bias"):
        body["logit_bias"] = logit_bias(options["logit_bias"])
    return body
