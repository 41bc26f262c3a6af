"""Every other task of transformers, each behind the one micro-batcher; runs inside a worker."""

from collections.abc import Mapping
from typing import Any

from uia_lab.domain.errors import BadRequest, ContextTooLong, Unsupported
from uia_lab.engine.frames import Done, Emit, Load, Piece, Submit
from uia_lab.engine.microbatch import MicroBatcher
from uia_lab.engine.pipeline_tasks import (
    AudioTranscription,
    FillMask,
    ImageClassification,
    Input,
    Task,
    TextClassification,
    TokenClassification,
    ZeroShotClassification,
)
from uia_lab.engine.question_answering import QuestionAnswering
from uia_lab.engine.sampling import is_token
from uia_lab.engine.sequence_tasks import Summarization, Translation

TASKS: Mapping[str, type[Task]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "fill-mask": FillMask,
    "summarization": Summarization,
    "translation": Translation,
    "zero-shot-classification": ZeroShotClassification,
    "image-classification": ImageClassification,
    "audio-transcription": AudioTranscription,
}

MAX_INPUTS = 2048
BATCH_TOKENS = 4096
# What clients send with every request, and what asks a model for nothing.
_HARMLESS = frozenset({"user", "metadata", "stream", "store", "encoding_format"})


class PipelineEngine:
    """A model for one task that gives a result at once.

    Results have the shapes of Hugging Face's pipelines: for one input what the pipeline gives for one, for a
    list of inputs a list of those.

    Args:
        load: The model and its sizes.
        emit: Takes the frames.
        threads: Threads torch computes with.

    Raises:
        InferenceError: The model cannot be loaded, or not for this task.
    """

    def __init__(self, load: Load, emit: Emit, threads: int) -> None:
        import torch

        if load.task not in TASKS:
            raise Unsupported(f"no local engine does {load.task}", param="task")
        torch.set_num_threads(threads)
        self._emit = emit
        self._name = load.model
        self._task_name = load.task
        self._task: Task = TASKS[load.task](load)
        self._batcher: MicroBatcher[Input, Any] = MicroBatcher(load.task, self._compute, BATCH_TOKENS, emit)
        self.cancel = self._batcher.cancel
        self.stats = self._batcher.stats

    def submit(self, job: Submit) -> None:
        """Queues a request.

        Raises:
            InferenceError: It is malformed, too long, or too much is waiting.
        """
        if job.task != self._task_name:
            raise Unsupported(f"{self._name} is loaded for {self._task_name}", param="task")
        if job.messages is not None:
            raise Unsupported(f"{self._task_name} takes inputs, no messages", param="messages")
        options = {name: value for name, value in job.parameters.items() if value is not None}
        unknown = sorted(options.keys() - self._task.parameters.keys() - _HARMLESS)
        if unknown:
            known = ", ".join(self._task.parameters) or "none"
            raise Unsupported(
                f"{self._task_name} has no parameter {unknown[0]!r}; known: {known}", param=unknown[0]
            )
        given = {
            name: self._checked(name, options[name]) for name in self._task.parameters if name in options
        }
        several = isinstance(job.inputs, list) and not self._task.is_one(job.inputs)
        asked = job.inputs if several else [job.inputs]
        if not asked:
            raise BadRequest("inputs is empty", param="inputs")
        if len(asked) > MAX_INPUTS:
            raise BadRequest(f"{len(asked)} inputs are over the limit of {MAX_INPUTS}", param="inputs")
        items = [self._task.prepare(value, given) for value in asked]
        for item in items:
            if self._task.longest and item.length > self._task.longest:
                raise ContextTooLong(
                    f"an input has {item.length} tokens and the model reads {self._task.longest}: shorten it",
                    param="inputs",
                )
        settings = self._task.settings(given)

        def finish(results: list[Any]) -> None:
            value = _plain(results if several else results[0])
            self._emit(Piece(job.rid, result={"value": value}))
            tokens = sum(item.length for item in items) if self._task.counts_tokens else 0
            self._emit(Done(job.rid, tokens, self._task.output_tokens(results), ["stop"]))

        key = tuple(sorted((name, _hashable(value)) for name, value in settings.items()))
        self._batcher.add(job.rid, items, [item.length for item in items], finish, key=key)

    def _checked(self, name: str, value: Any) -> Any:
        kind = self._task.parameters[name]
        fits = is_token(value) if kind is int else isinstance(value, kind)
        if kind is int and fits and value < 1:
            fits = False
        if not fits:
            names = {
                int: "a whole number above 0",
                bool: "true or false",
                str: "a text",
                list: "a list of texts",
            }
            wanted = names.get(kind, "of another type")
            raise BadRequest(f"{name} must be {wanted}, not {value!r}", param=name)
        if kind is list and not (value and all(isinstance(item, str) and item for item in value)):
            raise BadRequest(f"{name} must be a list of texts, not empty", param=name)
        return value

    def _compute(self, items: list[Input], key: tuple[tuple[str, Any], ...]) -> list[Any]:
        import torch

        settings = {name: list(value) if isinstance(value, tuple) else value for name, value in key}
        with torch.inference_mode():
            return self._task.run(items, settings)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """The same with numbers of Python in place of those of numpy and torch."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
