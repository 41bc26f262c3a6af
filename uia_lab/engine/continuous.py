"""Continuous batching: transformers' manager, watched, so that it comes back when it dies."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uia_lab.domain.errors import BackendFailed, Unsupported
from uia_lab.engine.generation_call import Sampling

log = logging.getLogger(__name__)

PAGE_TOKENS = 32
_LOOK_S = 0.2
_WARM_UP_S = 120.0
_STOP_S = 10.0

OnTokens = Callable[[str, list[int], bool], None]
"""Called with a key, the tokens that are new, and whether they were the last."""
OnFailure = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class CacheSize:
    """How much a lane may hold.

    Args:
        blocks: Blocks of PAGE_TOKENS tokens in the cache of keys and values.
        batch_tokens: Tokens computed in one step, prompts included.
    """

    blocks: int
    batch_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens one request may use; a block stays free for the step that is being computed."""
        return max(PAGE_TOKENS, (self.blocks - 1) * PAGE_TOKENS)


class ContinuousLane:
    """One continuous-batching manager over a model.

    A manager either takes the likeliest token or draws: per-request settings cost two sorts of the whole
    vocabulary a step, so greedy requests have a lane without them.

    Args:
        model: A causal language model of transformers.
        sampled: Whether tokens are drawn.
        size: Its cache.
        eos: Token ids that end an answer.
        on_tokens: Called from a thread of its own.
        on_failure: Called from that thread with a key and why it failed.

    Raises:
        Unsupported: The model cannot be batched so; the message says why.
    """

    def __init__(
        self,
        model: Any,
        *,
        sampled: bool,
        size: CacheSize,
        eos: list[int],
        on_tokens: OnTokens,
        on_failure: OnFailure,
    ) -> None:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        # A processor exists only where the manager's default asks for it: none of these is a neutral value.
        drawn = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
        self._sampled = sampled
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self._eos = eos
        self._on_tokens = on_tokens
        self._on_failure = on_failure
        self._running: dict[str, int] = {}
        self._mutex = threading.Lock()
        try:
            self._manager: Any = model.init_continuous_batching(
                generation_config=GenerationConfig(
                    **(drawn if sampled else {"do_sample": False}), eos_token_id=eos or -1, pad_token_id=0
                ),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE_TOKENS,
                    num_blocks=size.blocks,
                    max_batch_tokens=size.batch_tokens,
                    per_request_processors=sampled,
                ),
            )
            self._manager.start()
        except Exception as error:
            raise Unsupported(f"no continuous batching: {error}") from error
        self._warm_up()
        threading.Thread(target=self._pump, name="continuous batching", daemon=True).start()

    @property
    def running(self) -> int:
        """Requests it works on."""
        return len(self._running)

    @property
    def free(self) -> float:
        """Share of the cache that is free, from 0 to 1."""
        processor = self._manager.batch_processor
        return 1.0 if processor is None else float(processor.cache.compute_free_capacity())

    def submit(self, key: str, ids: list[int], sampling: Sampling) -> None:
        """Queues an answer.

        Raises:
            BackendFailed: The manager died this moment; it is being restarted.
        """
        settings: dict[str, Any] = {}
        if self._sampled:
            settings["temperature"] = float(sampling.temperature)
            settings["top_k"] = sampling.top_k or self._vocabulary
            settings["top_p"] = float(sampling.top_p)
        with self._mutex:
            self._running[key] = 0
            accepted = self._manager.add_request(
                ids,
                request_id=key,
                streaming=True,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=self._eos or -1,
                **settings,
            )
            if accepted is None:
                del self._running[key]
                raise BackendFailed("the batch has just broken down and is being set up again")

    def cancel(self, key: str) -> None:
        """Stops an answer; its blocks are free after the step that is being computed."""
        with self._mutex:
            if self._running.pop(key, None) is None:
                return
            self._manager.cancel_request(key)

    def _warm_up(self) -> None:
        """Computes one token: what a model cannot do shows at its first step only."""
        self._manager.add_request([0], request_id="warm up", max_new_tokens=1, eos_token_id=-1)
        output = self._manager.get_result(timeout=_WARM_UP_S)
        if output is None or output.error or not output.generated_tokens:
            why = output.error if output is not None else self._manager.background_thread_status.fatal_error
            self._manager.stop(hard_stop=True, timeout=_STOP_S)
            raise Unsupported(f"no continuous batching: {why or 'the first step did not end'}")

    def _pump(self) -> None:
        """Hands out tokens for ever, and sets the manager up again when it has died."""
        while True:
            output = self._manager.get_result(timeout=_LOOK_S)
            if output is not None:
                self._hand(output)
            elif self._manager.background_thread_status.can_accept_new_requests() is not None:
                self._restart()

    def _hand(self, output: Any) -> None:
        key = output.request_id
        with self._mutex:
            seen = self._running.get(key)
            if seen is None:
                return
            tokens = output.generated_tokens[seen:]
            finished = output.is_finished()
            if finished:
                del self._running[key]
            else:
                self._running[key] = seen + len(tokens)
        if output.error:
            self._on_failure(key, str(output.error))
        elif tokens or finished:
            self._on_tokens(key, tokens, finished)

    def _restart(self) -> None:
        """A dead manager takes requests and says nothing: nobody else would notice."""
        with self._mutex:
            why = self._manager.background_thread_status.fatal_error or "the batch has stopped"
            log.error("continuous batching died and is set up again: %s", why)
            lost = list(self._running)
            self._running.clear()
            self._manager.stop(hard_stop=True, timeout=_STOP_S)
            self._manager.start()
        for key in lost:
            self._on_failure(key, str(why))
