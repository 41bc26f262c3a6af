"""Many prompts at once: the part of AsyncLab that runs batches."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uia_lab.domain.backends import BackendType
from uia_lab.domain.errors import BadRequest
from uia_lab.notebook.batch import Batch, BatchItem
from uia_lab.notebook.batch_file import BatchFile, keys_of
from uia_lab.notebook.batch_progress import progress_here
from uia_lab.notebook.batch_prompts import prompts_of
from uia_lab.notebook.batch_run import BatchRun, from_file, from_log
from uia_lab.notebook.generations import text_request
from uia_lab.notebook.lab_core import LabCore
from uia_lab.notebook.moments import Moment, epoch

if TYPE_CHECKING:
    import pandas as pd

MOST_AT_ONCE = 256


class Batching(LabCore):
    """The part of :class:`AsyncLab` for many prompts."""

    async def map(
        self,
        /,
        prompts: "Iterable[str] | Iterable[Mapping[str, Any]] | pd.DataFrame",
        *,
        template: str | None = None,
        model: str | None = None,
        concurrency: int = 8,
        keep: str | os.PathLike[str] | None = None,
        since: Moment | None = None,
        wait: bool = True,
        show: bool = True,
        system: str | None = None,
        backend: str | None = None,
        prefer: BackendType | str | Sequence[BackendType | str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - each request's deadline, which the service keeps
        **parameters: Any,
    ) -> Batch:
        """Answers many prompts, in order, some at a time.

        A prompt that fails does not end the others, and where the house is full it is asked again.
        Interrupting the cell ends the batch and gives what is answered.

        To go on after a restart of the kernel, run the same call with the same ``keep`` again: only what is
        not in that file is asked. The request log keeps sizes and digests of prompts and no answers, so it
        can help only where ``log_prompts`` is on; ``since`` then takes answers from it.

        Args:
            prompts: Texts, mappings, or a DataFrame.
            template: What makes a prompt of a row: ``"Summarize: {text}"``, with ``{prompt}`` for a text.
            model: Model name; None for the default model.
            concurrency: Requests at once.
            keep: A file for the answers, one JSON object a line, in plain text; it is made or appended to.
            since: Takes answers that the request log has since then, to the same messages and model; other
                parameters are not compared.
            wait: Whether to wait for the end; False returns at once and the answers go on arriving.
            show: Whether to show how far it is.
            system: Instruction that comes before each prompt.
            backend: Id of the only backend to use.
            prefer: Backend types to try first, best first.
            temperature: Sampling temperature; 0 for the likeliest text.
            max_tokens: Tokens to generate at most, for each.
            seed: Seed of the sampling, where the backend has one.
            timeout: Seconds for each request, queueing included.
            **parameters: Further parameters by their OpenAI names.

        Returns:
            The batch: ``.texts``, ``.failed``, ``.frame()``, and one item a prompt.

        Raises:
            BadRequest: No prompts, a template that does not fit, or a file that holds something else.
            InferenceError: With ``wait``, what no prompt can be answered for: no such model, a wrong key.
        """
        if isinstance(concurrency, bool) or not 1 <= concurrency <= MOST_AT_ONCE:
            raise BadRequest(
                f"concurrency must be a whole number from 1 to {MOST_AT_ONCE}", param="concurrency"
            )
        texts, frame = prompts_of(prompts, template)
        requests = [
            text_request(
                text,
                model,
                system=system,
                backend=backend,
                prefer=prefer,
                timeout=timeout,
                temperature=temperature,
                max_tokens=max_tokens,
                seed=seed,
                **parameters,
            )
            for text in texts
        ]
        items = [BatchItem(number, text, model=model) for number, text in enumerate(texts)]
        keys = keys_of(requests)
        file = None if keep is None else BatchFile(keep)
        if file is not None:
            await from_file(items, keys, file)
        begin = epoch(since, "since")
        if begin is not None:
            await from_log(items, requests, self._transport, begin)
        batch = Batch(items, frame)
        progress = progress_here(batch) if show else None
        run = BatchRun(batch, requests, keys, self.generations, concurrency, file, progress)
        batch.begin(self.spawn(run.run), lambda: self._end_batch(run))
        if wait:
            await batch
        return batch

    def _end_batch(self, run: BatchRun) -> None:
        # Closed meanwhile, which ended it too.
        if not self.closed:
            self.spawn(run.stop)
