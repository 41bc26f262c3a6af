"""Sentence embeddings with torch and transformers; runs inside a worker."""

from typing import Any

import numpy as np
import numpy.typing as npt

from uia_lab.domain.errors import BackendFailed, BadRequest, Unsupported
from uia_lab.domain.tasks import TEXT_EMBEDDING
from uia_lab.engine.frames import Done, Emit, Load, Piece, Submit
from uia_lab.engine.microbatch import MicroBatcher
from uia_lab.engine.pretrained import folder_of, load_model

MAX_INPUTS = 2048
BATCH_TOKENS = 4096

Row = npt.NDArray[np.float32]


class EmbeddingEngine:
    """An encoder with mean pooling and L2 normalisation, as sentence-transformers computes it.

    Args:
        load: The model and its sizes; ``context_length`` cuts longer inputs.
        emit: Takes the frames.
        threads: Threads torch computes with.

    Raises:
        BackendFailed: The model cannot be loaded; the message says why.
    """

    def __init__(self, load: Load, emit: Emit, threads: int) -> None:
        import torch
        from tokenizers import Tokenizer

        torch.set_num_threads(threads)
        self._model = load_model(load, "AutoModel", optional=("pooler",))
        config = self._model.config
        file = folder_of(load) / "tokenizer.json"
        if not file.is_file():
            raise BackendFailed(f"{load.model} has no tokenizer.json")
        # The tokenizer's file brings a truncation and a padding of its own: both are ours.
        self._tokenizer = Tokenizer.from_file(str(file))
        self._longest = min(load.context_length, getattr(config, "max_position_embeddings", 1 << 20))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._longest)
        self._padding: int = config.pad_token_id or 0
        self._vocabulary: int = config.vocab_size
        self._width: int = config.hidden_size
        self._emit = emit
        self._batcher: MicroBatcher[list[int], Row] = MicroBatcher(
            "embeddings", self._compute, BATCH_TOKENS, emit, BATCH_TOKENS
        )
        self.cancel = self._batcher.cancel
        self.stats = self._batcher.stats

    def submit(self, job: Submit) -> None:
        """Queues a request.

        Raises:
            InferenceError: It is malformed, or too much is waiting.
        """
        if job.task != TEXT_EMBEDDING or job.messages is not None:
            raise Unsupported(f"{job.model} computes embeddings only", param="task")
        dimensions = job.parameters.get("dimensions")
        if dimensions is None:
            dimensions = self._width
        elif isinstance(dimensions, bool) or not isinstance(dimensions, int):
            raise BadRequest(f"dimensions must be a whole number, not {dimensions!r}", param="dimensions")
        elif not 1 <= dimensions <= self._width:
            raise BadRequest(f"dimensions must be from 1 to {self._width}", param="dimensions")
        tokens = self._tokens(job.inputs)
        lengths = [len(ids) for ids in tokens]

        def finish(results: list[Row]) -> None:
            rows = np.stack(results)
            if dimensions < self._width:
                rows = rows[:, :dimensions]
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            data = np.ascontiguousarray(rows, "<f4").tobytes()
            self._emit(Piece(job.rid, value=data, width=dimensions))
            self._emit(Done(job.rid, sum(lengths), 0, ["stop"]))

        self._batcher.add(job.rid, tokens, lengths, finish)

    def _tokens(self, inputs: Any) -> list[list[int]]:
        """Token ids, cut to the model's length, of a text, token ids, or a list of either."""
        if isinstance(inputs, str) or (isinstance(inputs, list) and inputs and isinstance(inputs[0], int)):
            inputs = [inputs]
        if not isinstance(inputs, list) or not inputs:
            raise BadRequest("inputs must be a text or a list of texts", param="inputs")
        if len(inputs) > MAX_INPUTS:
            raise BadRequest(f"{len(inputs)} inputs are over the limit of {MAX_INPUTS}", param="inputs")
        if all(isinstance(item, str) for item in inputs):
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(inputs)]
        return [self._checked(item) for item in inputs]

    def _checked(self, item: Any) -> list[int]:
        if isinstance(item, str):
            ids: list[int] = self._tokenizer.encode(item).ids
            return ids
        if not isinstance(item, list) or not item:
            raise BadRequest("an input must be text or a list of token ids", param="inputs")
        for token in item:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._vocabulary:
                raise BadRequest(f"{token!r} is no token id of this model", param="inputs")
        return item[: self._longest]

    def _compute(self, tokens: list[list[int]], _key: Any) -> list[Row]:
        """A unit vector of each list of token ids."""
        import torch

        length = max(len(ids) for ids in tokens)
        ids = torch.full((len(tokens), length), self._padding)
        mask = torch.zeros((len(tokens), length), dtype=torch.long)
        for place, own in enumerate(tokens):
            ids[place, : len(own)] = torch.tensor(own)
            mask[place, : len(own)] = 1
        device = self._model.device
        ids, mask = ids.to(device), mask.to(device)
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            rows = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return list(rows)
