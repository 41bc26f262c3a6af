"""Extractive question answering: the span of a context that answers a question."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from uia_lab.domain.errors import BadRequest
from uia_lab.engine.pipeline_tasks import Input, Task

ANSWER_TOKENS = 15


class QuestionAnswering(Task):
    """``{score, start, end, answer}``, as transformers' pipeline gave it while there was one."""

    auto_class = "AutoModelForQuestionAnswering"
    parameters: ClassVar[Mapping[str, type]] = {"top_k": int, "max_answer_len": int}

    def prepare(self, value: Any, _given: Mapping[str, Any]) -> Input:
        """An object with ``question`` and ``context``."""
        if not isinstance(value, Mapping):
            raise BadRequest("inputs must be an object with question and context", param="inputs")
        for name in ("question", "context"):
            if not isinstance(value.get(name), str) or not value[name].strip():
                raise BadRequest(f"inputs.{name} must be a text, not empty", param="inputs")
        question, context = value["question"], value["context"]
        return Input((question, context), self._tokens(question, context))

    def run(self, items: Sequence[Input], settings: dict[str, Any]) -> list[Any]:
        """The best spans of each context."""
        batch = self._tokenizer(
            [item.value[0] for item in items],
            [item.value[1] for item in items],
            padding=len(items) > 1,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets = batch.pop("offset_mapping")
        output = self._model(**batch.to(self._model.device))
        results = []
        for place, item in enumerate(items):
            # Only the context's own tokens: the second of the two sequences.
            inside = [part == 1 for part in batch.sequence_ids(place)]
            spans = _spans(
                output.start_logits[place], output.end_logits[place], inside, settings.get("max_answer_len")
            )
            found = []
            for score, first, last in spans[: settings.get("top_k", 1)]:
                start, end = int(offsets[place][first][0]), int(offsets[place][last][1])
                found.append({"score": score, "start": start, "end": end, "answer": item.value[1][start:end]})
            results.append(found if settings.get("top_k", 1) > 1 else found[0])
        return results


def _spans(
    starts: Any, ends: Any, inside: Sequence[bool], longest: int | None
) -> list[tuple[float, int, int]]:
    """Spans by their score, best first: probability of the start times probability of the end."""
    import torch

    mask = torch.tensor(inside, device=starts.device)
    begin = torch.softmax(starts.float().masked_fill(~mask, -torch.inf), 0)
    finish = torch.softmax(ends.float().masked_fill(~mask, -torch.inf), 0)
    scores = torch.outer(begin, finish).triu().tril((longest or ANSWER_TOKENS) - 1)
    best = scores.flatten().topk(min(50, scores.numel()))
    width = scores.shape[1]
    return [
        (value, place // width, place % width)
        for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if value > 0 or place == best.indices[0]
    ]
