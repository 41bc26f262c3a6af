"""One answer after the other with ``generate``: for what continuous batching cannot do."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from uia_lab.engine.generation_call import Sampling

log = logging.getLogger(__name__)

OnToken = Callable[[str, int, "dict[str, Any] | None"], bool]
"""Called with a key, the token and its log probabilities; True ends the answer."""
OnEnd = Callable[[str, str | None], None]
"""Called with a key and, if it failed, why."""


class SerialLane:
    """A thread that generates one answer at a time.

    Seeds, penalties, a logit bias and log probabilities work here, exactly and apart from what else the
    process draws.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer, for the texts of log probabilities.
        eos: Token ids that end an answer.
        on_token: Called from the thread.
        on_end: Called from the thread.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, eos: list[int], on_token: OnToken, on_end: OnEnd
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._eos = eos
        self._on_token = on_token
        self._on_end = on_end
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[list[int], Sampling]] = {}
        self._current = ""
        self._cancelled = threading.Event()
        self._mutex = threading.Lock()
        threading.Thread(target=self._work, name="serial generation", daemon=True).start()

    @property
    def running(self) -> int:
        """Answers here, those that wait included."""
        return len(self._waiting) + bool(self._current)

    def submit(self, key: str, ids: list[int], sampling: Sampling) -> None:
        """Queues an answer."""
        with self._mutex:
            self._waiting[key] = (ids, sampling)
        self._queue.put(key)

    def cancel(self, key: str) -> None:
        """Stops an answer at its next token."""
        with self._mutex:
            self._waiting.pop(key, None)
            if self._current == key:
                self._cancelled.set()

    def _work(self) -> None:
        while True:
            key = self._queue.get()
            with self._mutex:
                job = self._waiting.pop(key, None)
                if job is None:
                    continue
                self._current = key
                self._cancelled.clear()
            why: str | None = None
            try:
                self._generate(key, *job)
            except Exception as error:
                log.exception("a generation failed")
                why = f"{type(error).__name__}: {error}"
            with self._mutex:
                self._current = ""
            self._on_end(key, why)

    def _generate(self, key: str, ids: list[int], sampling: Sampling) -> None:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

        draw = _Draw(sampling, len(ids))
        lane = self

        class Stop(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
            def __call__(self, input_ids: Any, _scores: Any, **_: Any) -> Any:
                token = int(input_ids[0, -1])
                over = lane._on_token(key, token, lane._logprobs(draw, token)) or lane._cancelled.is_set()
                return torch.full((1,), over, dtype=torch.bool, device=input_ids.device)

        with torch.inference_mode():
            prompt = torch.tensor([ids], device=self._model.device)
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=sampling.max_tokens,
                    eos_token_id=self._eos or None,
                    pad_token_id=self._eos[0] if self._eos else 0,
                ),
                logits_processor=LogitsProcessorList([draw]),
                stopping_criteria=StoppingCriteriaList([Stop()]),
            )

    def _logprobs(self, draw: "_Draw", token: int) -> dict[str, Any] | None:
        if draw.row is None:
            return None
        most = draw.row.topk(max(1, draw.sampling.logprobs or 0))
        tops = list(zip(most.indices.tolist(), most.values.tolist(), strict=True))
        return {
            **self._entry(token, float(draw.row[token])),
            "top_logprobs": [self._entry(*top) for top in tops[: draw.sampling.logprobs or 0]],
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class _Draw:
    """Draws the next token and leaves only that one possible, so that ``generate`` takes it.

    ``generate`` itself draws from the generator that all of the process shares, where no seed holds.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: int) -> None:
        import torch
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self.sampling = sampling
        self.row: Any = None
        self._prompt = prompt_tokens
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % (1 << 63))
        self._before: Any = LogitsProcessorList()
        if sampling.repetition not in (0.0, 1.0):
            self._before.append(RepetitionPenaltyLogitsProcessor(sampling.repetition))
        self._warpers: Any = LogitsProcessorList()
        if not sampling.greedy:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(max(sampling.top_p, 1e-9)))
            if sampling.min_p:
                self._warpers.append(MinPLogitsWarper(sampling.min_p))

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        scores = scores.float()
        if self.sampling.logprobs is not None:
            # Of the model itself, as OpenAI's are: before penalties and temperature.
            self.row = torch.log_softmax(scores[0], dim=-1)
        scores = self._before(ids, scores)
        if self.sampling.presence or self.sampling.frequency:
            counts = torch.bincount(ids[0, self._prompt :], minlength=scores.shape[-1])
            scores = scores - self.sampling.frequency * counts - self.sampling.presence * (counts > 0)
        for token, value in self.sampling.bias:
            scores[0, token] += value
        if self.sampling.greedy:
            return scores
        odds = torch.softmax(self._warpers(ids, scores), dim=-1)
        token = torch.multinomial(odds.cpu(), 1, generator=self._generator)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, token.to(scores.device), 0.0)
