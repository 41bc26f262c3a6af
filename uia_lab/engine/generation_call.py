"""The choices a generation request comes down to, for the transformers engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from uia_lab.domain.errors import BadRequest, ContextTooLong, Unsupported
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

# Below this a temperature only divides logits out of their range: what is meant is the likeliest token.
COLDEST = 1e-3


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_tokens: Tokens to generate at most.
        temperature: 0 for the likeliest token.
        top_p: Share of the probability that is drawn from.
        top_k: Tokens drawn from; 0 for all.
        min_p: Tokens less likely than this share of the likeliest one are not drawn.
        repetition: Divisor of the logits of tokens seen before; 1 for none.
        presence: Taken off the logit of a token generated before.
        frequency: Taken off for each time it was generated.
        seed: Makes the draws repeatable.
        bias: Pairs of token id and what is added to its logit.
        logprobs: Alternatives reported at each token; None for no log probabilities.
        stops: Strings that end the answer.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int | None = None
    bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    stops: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < COLDEST

    @property
    def plain(self) -> bool:
        """Whether continuous batching can follow it: nothing beyond temperature, top-k and top-p."""
        return (
            (self.seed is None or self.greedy)
            and self.logprobs is None
            and not self.bias
            and (self.repetition, self.presence, self.frequency) == (1.0, 0.0, 0.0)
            and (self.min_p == 0 or self.greedy)
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to compute: its prompt as token ids, the text it repeats first, and how to draw."""

    prompt: int
    ids: list[int]
    echo: str
    sampling: Sampling


class Planner:
    """Turns requests into choices, and refuses what would break the engine.

    Args:
        encode: Token ids of a prompt.
        chat: Token ids of chat messages.
        vocabulary: Token ids a model knows.
        context_length: Tokens of prompt and answer together.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        chat: Callable[[list[dict[str, Any]]], list[int]],
        vocabulary: int,
        context_length: int,
    ) -> None:
        self._encode = encode
        self._chat = chat
        self._vocabulary = vocabulary
        self._context = context_length

    def choices(self, job: Submit) -> list[Choice]:
        """The choices of a request; the place in the list is the choice's number.

        Raises:
            BadRequest: A value that is not what its name stands for.
            ContextTooLong: A prompt that leaves no room for an answer.
            Unsupported: Something this engine does not give.
        """
        options = job.parameters
        drawn = self._sampling(options)
        count = whole(options, "n", 1, MAX_CHOICES, default=1)
        echo = bool(options.get("echo") or options.get("return_full_text"))
        if job.messages is not None:
            if not job.messages:
                raise BadRequest("messages is empty", param="messages")
            asked = [(self._chat(job.messages), "")]
        else:
            asked = [self._prompt(prompt, echo=echo) for prompt in prompts(job.inputs)]
            if echo and drawn.logprobs is not None:
                raise Unsupported(
                    "the prompt's log probabilities are not known: no echo with logprobs", param="echo"
                )
        if len(asked) * count > MAX_CHOICES:
            raise BadRequest(f"{len(asked)} prompts times n={count} is over {MAX_CHOICES} answers", param="n")
        found = []
        for index, (ids, text) in enumerate(asked):
            room = self._context - len(ids)
            if room < 1:
                raise ContextTooLong(
                    f"the prompt has {len(ids)} tokens and the model's context here {self._context}: "
                    "shorten it",
                    param="inputs" if job.messages is None else "messages",
                )
            for turn in range(count):
                own = _replaced(drawn, max_tokens=min(drawn.max_tokens, room), turn=turn)
                found.append(Choice(index, ids, text, own))
        return found

    def _prompt(self, prompt: Any, *, echo: bool) -> tuple[list[int], str]:
        if isinstance(prompt, str):
            ids = self._encode(prompt)
            if not ids:
                raise BadRequest("the prompt has no tokens", param="inputs")
            return ids, prompt if echo else ""
        if echo:
            raise Unsupported("echo needs the prompt as text", param="echo")
        for token in prompt:
            # An id beyond the vocabulary ends the batch that everybody's requests are in.
            if not 0 <= token < self._vocabulary:
                raise BadRequest(f"{token!r} is no token id of this model", param="inputs")
        return prompt, ""

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        values = {
            "temperature": number(options, "temperature"),
            "top_p": number(options, "top_p"),
            "min_p": number(options, "min_p"),
            "presence": number(options, "presence_penalty"),
            "frequency": number(options, "frequency_penalty"),
            "repetition": number(options, "repetition_penalty") or number(options, "repeat_penalty"),
        }
        given = {name: float(value) for name, value in values.items() if value is not None}
        if options.get("do_sample") is False:
            given["temperature"] = 0.0
        # -1 and 0 both stand for all of them; more than there are is all of them too.
        top_k = max(whole(options, "top_k", -1, 1 << 31), 0)
        seed = options.get("seed")
        bias = tuple((int(token), value) for token, value in logit_bias(options.get("logit_bias") or {}))
        for token, _ in bias:
            if not 0 <= token < self._vocabulary:
                raise BadRequest(f"{token} is no token id of this model", param="logit_bias")
        return Sampling(
            max_tokens(options),
            **given,
            top_k=0 if top_k >= self._vocabulary else top_k,
            seed=None if seed is None else whole(options, "seed", -(1 << 63), (1 << 64) - 1),
            bias=bias,
            logprobs=logprob_count(options),
            stops=tuple(stops(options["stop"])) if options.get("stop") is not None else (),
        )


def _replaced(drawn: Sampling, *, max_tokens: int, turn: int) -> Sampling:
    # With one seed for all of them, the answers would be the same.
    seed = None if drawn.seed is None else (drawn.seed + turn) % (1 << 63)
    return replace(drawn, max_tokens=max_tokens, seed=seed)
