"""Text generation with torch and transformers; runs inside a worker."""

import functools
import itertools
import logging
import threading
from typing import Any

from uia_lab.domain.errors import BackendFailed, InferenceError, QueueFull, Unsupported
from uia_lab.engine.continuous import PAGE_TOKENS, CacheSize, ContinuousLane
from uia_lab.engine.estimate import cache_bytes_per_token
from uia_lab.engine.frames import Done, Emit, Failed, Load, Piece, Submit
from uia_lab.engine.generation_call import Choice, Planner
from uia_lab.engine.pretrained import load_model, load_tokenizer
from uia_lab.engine.serial import SerialLane
from uia_lab.engine.text_stream import TextStream

log = logging.getLogger(__name__)

MAX_WAITING = 1024
# Measured: a step on a CPU gains nothing from more tokens, and a larger one delays everybody's next token.
CPU_BATCH_TOKENS = 512
GPU_BATCH_TOKENS = 4096


class GenerationEngine:
    """A causal language model: continuous batching, and one answer after the other where that cannot be.

    Args:
        load: The model and its sizes.
        emit: Takes the frames; called from several threads.
        threads: Threads torch computes with.

    Raises:
        InferenceError: The model cannot be loaded; the message says why.
    """

    def __init__(self, load: Load, emit: Emit, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._emit = emit
        self._tokenizer = load_tokenizer(load)
        self._model = load_model(load, "AutoModelForCausalLM")
        _one_at_a_time(self._model)
        config = self._model.config.get_text_config()
        self._eos = _ends(self._model, self._tokenizer)
        self._size = _cache_size(load, config.to_dict(), self._model.device.type)
        limits = [load.context_length]
        if getattr(config, "max_position_embeddings", None):
            limits.append(config.max_position_embeddings)
        self._answers: dict[str, _Answer] = {}
        self._owners: dict[str, tuple[_Answer, int]] = {}
        self._mutex = threading.RLock()
        self._keys = itertools.count(1)
        self._why_serial = ""
        self._sampled: ContinuousLane | None = None
        self._greedy = self._lane(sampled=False)
        if self._greedy is not None:
            limits.append(self._size.tokens)
        self._planner = Planner(self._encode, self._chat, config.vocab_size, min(limits))
        self._serial = SerialLane(
            self._model, self._tokenizer, eos=self._eos, on_token=self._token, on_end=self._ended
        )

    def submit(self, job: Submit) -> None:
        """Queues every answer that the request asks for.

        Raises:
            InferenceError: The request is malformed, or too much is waiting.
        """
        choices = self._planner.choices(job)
        with self._mutex:
            if len(self._owners) + len(choices) > MAX_WAITING:
                raise QueueFull(f"{len(self._owners)} answers are waiting for this model already")
            answer = _Answer(job.rid, choices, self)
            self._answers[job.rid] = answer
        for number, choice in enumerate(choices):
            if choice.echo:
                self._emit(Piece(job.rid, number, choice.echo))
        for number, choice in enumerate(choices):
            key = f"{next(self._keys)}"
            with self._mutex:
                if answer.over:
                    return
                lane = self._lane_for(choice)
                self._owners[key] = (answer, number)
                answer.keys[key] = lane
            try:
                lane.submit(key, choice.ids, choice.sampling)
            except InferenceError as error:
                self._fail(answer, error)
                return

    def cancel(self, rid: str) -> None:
        """Stops a request; its blocks of the cache are free after the step that is being computed."""
        with self._mutex:
            answer = self._answers.get(rid)
            if answer is not None:
                self._drop(answer)

    def stats(self) -> dict[str, float]:
        """Requests and answers here, what runs where, and the share of the cache that is free."""
        with self._mutex:
            figures = {
                "running": float(len(self._answers)),
                "answers": float(len(self._owners)),
                "serial": float(self._serial.running),
            }
        if self._greedy is not None:
            figures["batched"] = float(self._greedy.running + (self._sampled.running if self._sampled else 0))
            figures["cache_free"] = self._greedy.free
        return figures

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special ones left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _lane(self, *, sampled: bool) -> ContinuousLane | None:
        attention = self._model.config._attn_implementation  # noqa: SLF001 - there is no public name
        if attention != "sdpa" and not attention.startswith("flash"):
            # Other kinds are switched to a paged one, which serial answers could not run on.
            self._why_serial = f"its attention is {attention}"
            return None
        try:
            return ContinuousLane(
                self._model,
                sampled=sampled,
                size=self._size,
                eos=self._eos,
                on_tokens=self._tokens,
                on_failure=self._ended,
            )
        except Unsupported as error:
            self._why_serial = error.message
            log.warning("one answer at a time: %s", error.message)
            return None

    def _lane_for(self, choice: Choice) -> "ContinuousLane | SerialLane":
        if self._greedy is None or not choice.sampling.plain:
            return self._serial
        if choice.sampling.greedy:
            return self._greedy
        if self._sampled is None:
            self._sampled = self._lane(sampled=True)
        return self._sampled or self._serial

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text).input_ids
        return ids

    def _chat(self, messages: list[dict[str, Any]]) -> list[int]:
        plain = [{**message, "content": _text(message.get("content"))} for message in messages]
        if not self._tokenizer.chat_template:
            # A model that was never taught to chat goes on with what it is given.
            return self._encode("\n".join(message["content"] for message in plain))
        text = self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _tokens(self, key: str, tokens: list[int], finished: bool) -> None:
        """Tokens of the batch have come."""
        with self._mutex:
            owner = self._owners.get(key)
        if owner is None:
            return
        over = owner[0].feed(owner[1], tokens, None)
        if over and not finished:
            owner[0].keys[key].cancel(key)
        if over or finished:
            self._ended(key, None)

    def _token(self, key: str, token: int, logprobs: dict[str, Any] | None) -> bool:
        """A token of the serial lane has come; True ends its answer."""
        with self._mutex:
            owner = self._owners.get(key)
        return owner is None or owner[0].feed(owner[1], [token], logprobs)

    def _ended(self, key: str, why: str | None) -> None:
        with self._mutex:
            owner = self._owners.pop(key, None)
        if owner is None:
            return
        answer, choice = owner
        if why is not None:
            self._fail(answer, BackendFailed(f"the model failed: {why}"))
        elif answer.end(choice):
            with self._mutex:
                self._answers.pop(answer.rid, None)
            self._emit(answer.done())

    def _fail(self, answer: "_Answer", error: InferenceError) -> None:
        with self._mutex:
            first = not answer.over
            self._drop(answer)
        if first:
            self._emit(Failed(answer.rid, error.code, error.message, error.param))

    def _drop(self, answer: "_Answer") -> None:
        """Forgets an answer and stops what is computed of it. Called with the lock held."""
        answer.over = True
        self._answers.pop(answer.rid, None)
        for key, lane in answer.keys.items():
            if self._owners.pop(key, None) is not None:
                lane.cancel(key)

    def emit(self, piece: Piece) -> None:
        """Sends a piece."""
        self._emit(piece)

    @property
    def ends(self) -> list[int]:
        """Token ids that end an answer."""
        return self._eos


class _Answer:
    """The answer to one request: several choices that share a fate."""

    def __init__(self, rid: str, choices: list[Choice], engine: GenerationEngine) -> None:
        self.rid = rid
        self.over = False
        self.keys: dict[str, ContinuousLane | SerialLane] = {}
        self._engine = engine
        self._choices = choices
        self._texts = [TextStream(engine.decode, choice.sampling.stops) for choice in choices]
        self._counts = [0] * len(choices)
        self._reasons = ["length"] * len(choices)
        self._left = len(choices)
        self._mutex = threading.Lock()

    def feed(self, choice: int, tokens: list[int], logprobs: dict[str, Any] | None) -> bool:
        """Takes tokens of a choice; True when it ends with them."""
        text = self._texts[choice]
        if self.over or text.stopped:
            return True
        self._counts[choice] += len(tokens)
        ended = bool(tokens) and tokens[-1] in self._engine.ends
        sent = text.feed(tokens[:-1] if ended else tokens)
        if ended or text.stopped:
            self._reasons[choice] = "stop"
        entries = [logprobs] if logprobs is not None and not ended else None
        if sent or entries:
            self._engine.emit(Piece(self.rid, choice, sent, logprobs=entries))
        return ended or text.stopped

    def end(self, choice: int) -> bool:
        """A choice is over; True when it was the last one."""
        if rest := self._texts[choice].end():
            self._engine.emit(Piece(self.rid, choice, rest))
        if self._texts[choice].stopped:
            self._reasons[choice] = "stop"
        with self._mutex:
            self._left -= 1
            return not self._left and not self.over

    def done(self) -> Done:
        """The end, with the token counts."""
        # The choices of one prompt share it: it counts once.
        prompts = {choice.prompt: len(choice.ids) for choice in self._choices}
        return Done(self.rid, sum(prompts.values()), sum(self._counts), self._reasons)


def _one_at_a_time(model: Any) -> None:
    """Lets one thread at a time through the model.

    A forward call writes ``is_causal`` into the model's shared configuration and puts the old value back:
    two at once leave the wrong one there, and every later answer is wrong without any error.
    """
    forward, mutex = model.forward, threading.Lock()

    @functools.wraps(forward)
    def alone(*args: Any, **options: Any) -> Any:
        with mutex:
            return forward(*args, **options)

    model.forward = alone


def _text(content: Any) -> str:
    """The text of a message whose content is text or a list of text parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Every token id that ends an answer, by the model and by its tokenizer."""
    found = model.generation_config.eos_token_id
    ids = [found] if isinstance(found, int) else list(found or ())
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return sorted({token for token in ids if token >= 0})


def _cache_size(load: Load, config: dict[str, Any], device: str) -> CacheSize:
    wanted = load.concurrency * load.context_length
    a_token = cache_bytes_per_token(config, load.dtype)
    if load.cache_bytes and a_token:
        wanted = min(wanted, load.cache_bytes // a_token)
    # Fewer than one request's tokens would refuse what the model can do.
    wanted = max(wanted, min(load.context_length, 256))
    batch = CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS
    return CacheSize(-(-wanted // PAGE_TOKENS) + 1, batch)
