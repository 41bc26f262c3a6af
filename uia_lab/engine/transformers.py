"""Sentence embeddings with torch and transformers; runs inside a worker."""

import itertools
import json
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uia_lab.domain.errors import BadRequest, QueueFull, Unsupported
from uia_lab.domain.tasks import TEXT_EMBEDDING
from uia_lab.engine.frames import Done, Emit, Failed, Load, Piece, Submit

MAX_INPUTS = 2048
MAX_WAITING = 16384
BATCH_TOKENS = 4096

Rows = npt.NDArray[np.float32]


class _Job:
    """A request: token ids of its inputs, and the rows computed so far."""

    def __init__(self, rid: str, tokens: list[list[int]], width: int, dimensions: int) -> None:
        self.rid = rid
        self.tokens = tokens
        self.rows: Rows = np.empty((len(tokens), width), np.float32)
        self.left = len(tokens)
        self.dimensions = dimensions
        self.cancelled = False


class TransformersEngine:
    """An encoder with mean pooling and L2 normalisation, as sentence-transformers computes it.

    One thread computes. Whenever it is free it takes a batch of what is waiting, over all requests: there
    is no timer, so a lone request never waits for company.

    Args:
        load: The model and its sizes; ``context_length`` cuts longer inputs.
        emit: Takes the frames.
        threads: Threads torch computes with.
    """

    def __init__(self, load: Load, emit: Emit, threads: int) -> None:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        torch.set_num_threads(threads)
        folder = Path(load.path).parent
        config = json.loads((folder / "config.json").read_text())
        self._model = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, add_pooling_layer=False
        ).eval()
        # The tokenizer's file brings a truncation and a padding of its own: both are ours.
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(load.context_length, config["max_position_embeddings"]))
        self._longest = min(load.context_length, config["max_position_embeddings"])
        self._padding: int = config.get("pad_token_id") or 0
        self._vocabulary: int = config["vocab_size"]
        self._width: int = config["hidden_size"]
        self._emit = emit
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        # Requests whose rows wait, oldest first: (job, place) of every input not computed yet.
        self._waiting: list[tuple[_Job, int]] = []
        threading.Thread(target=self._work, name="embeddings", daemon=True).start()

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
        new = _Job(job.rid, self._tokens(job.inputs), self._width, dimensions)
        with self._wake:
            if len(self._waiting) + new.left > MAX_WAITING:
                raise QueueFull(f"{len(self._waiting)} inputs are waiting for this model already")
            self._jobs.append(new)
            self._waiting.extend((new, place) for place in range(new.left))
            self._wake.notify()

    def cancel(self, rid: str) -> None:
        """Drops what of a request is not computed yet."""
        with self._wake:
            for job in self._jobs:
                if job.rid == rid:
                    self._drop(job)
                    break

    def stats(self) -> dict[str, float]:
        """Requests here, and inputs not computed yet."""
        with self._wake:
            return {"running": float(len(self._jobs)), "waiting": float(len(self._waiting))}

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

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    self._wake.wait()
                batch = self._take()
            try:
                rows = self._compute([job.tokens[place] for job, place in batch])
            except Exception as error:  # noqa: BLE001 - one batch never ends the worker
                self._fail({id(job): job for job, _ in batch}, f"{type(error).__name__}: {error}")
                continue
            for (job, place), row in zip(batch, rows, strict=True):
                job.rows[place] = row
                job.left -= 1
                if not job.left:
                    self._finish(job)

    def _take(self) -> list[tuple[_Job, int]]:
        """A batch of inputs near in length: padding is wasted work. Called with the lock held.

        It starts with the longest input of the oldest request, so none is left waiting for ever.
        """
        oldest = self._waiting[0][0]

        def length(item: tuple[_Job, int]) -> int:
            return len(item[0].tokens[item[1]])

        longest = max(length(item) for item in self._waiting if item[0] is oldest)
        # A stable sort with the oldest request's inputs first among those of one length.
        fitting = sorted(
            (item for item in self._waiting if length(item) <= longest), key=length, reverse=True
        )
        batch = list(itertools.islice(fitting, max(1, BATCH_TOKENS // longest)))
        taken = {(id(job), place) for job, place in batch}
        self._waiting = [item for item in self._waiting if (id(item[0]), item[1]) not in taken]
        return batch

    def _compute(self, tokens: list[list[int]]) -> Rows:
        """Unit vectors of shape ``(len(tokens), width)``."""
        import torch

        length = max(len(ids) for ids in tokens)
        ids = torch.full((len(tokens), length), self._padding)
        mask = torch.zeros((len(tokens), length), dtype=torch.long)
        for place, own in enumerate(tokens):
            ids[place, : len(own)] = torch.tensor(own)
            mask[place, : len(own)] = 1
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            rows: Rows = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return rows

    def _finish(self, job: _Job) -> None:
        with self._wake:
            if job.cancelled:
                return
            self._jobs.remove(job)
        rows = job.rows
        if job.dimensions < self._width:
            rows = rows[:, : job.dimensions]
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        self._emit(Piece(job.rid, value=data, width=job.dimensions))
        self._emit(Done(job.rid, sum(len(ids) for ids in job.tokens), 0, ["stop"]))

    def _fail(self, jobs: Mapping[int, _Job], message: str) -> None:
        for job in jobs.values():
            with self._wake:
                if job.cancelled:
                    continue
                self._drop(job)
            self._emit(Failed(job.rid, "backend_failed", message))

    def _drop(self, job: _Job) -> None:
        job.cancelled = True
        self._jobs.remove(job)
        self._waiting = [item for item in self._waiting if item[0] is not job]
