"""Summarization and translation: texts from texts, by an encoder and a decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from uia_lab.domain.errors import BadRequest
from uia_lab.engine.frames import Load
from uia_lab.engine.pipeline_tasks import Input, Task

MOST_TOKENS = 4096


class _SequenceTask(Task):
    auto_class = "AutoModelForSeq2SeqLM"
    result: ClassVar[str] = ""
    parameters: ClassVar[Mapping[str, type]] = {
        "max_new_tokens": int,
        "min_new_tokens": int,
        "max_tokens": int,
        "max_length": int,
        "min_length": int,
        "num_beams": int,
    }

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._longest_answer = min(self.longest, MOST_TOKENS)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Lengths under the names of ``generate``; the model's own where the request has none."""
        most = given.get("max_new_tokens") or given.get("max_tokens") or given.get("max_length")
        least = given.get("min_new_tokens") or given.get("min_length")
        if most and least and least > most:
            raise BadRequest("the least length is above the largest one", param="min_length")
        found: dict[str, Any] = {"max_new_tokens": min(most or 256, self._longest_answer), "do_sample": False}
        if least:
            found["min_new_tokens"] = min(least, self._longest_answer)
        if (beams := given.get("num_beams")) is not None:
            if beams > 16:
                raise BadRequest("num_beams is at most 16", param="num_beams")
            found["num_beams"] = beams
        return found

    def prepare(self, value: Any, given: Mapping[str, Any]) -> Input:
        """A text, behind the words that tell a T5 its task."""
        text = super().prepare(value, given).value
        specific = (getattr(self._model.config, "task_specific_params", None) or {}).get(
            self._task_key(given)
        )
        prefix = (specific or {}).get("prefix", "")
        return Input(prefix + text, self._tokens(prefix + text))

    def _task_key(self, _given: Mapping[str, Any]) -> str:
        return "summarization"

    def _forced(self, settings: dict[str, Any]) -> dict[str, Any]:
        return settings

    def run(self, items: Sequence[Input], settings: dict[str, Any]) -> list[Any]:
        """The text of each input."""
        settings = self._forced(settings)
        batch = self._tokenizer([item.value for item in items], padding=len(items) > 1, return_tensors="pt")
        batch.pop("token_type_ids", None)
        ids = self._model.generate(**batch.to(self._model.device), **settings)
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{self.result: text} for text in texts]

    def output_tokens(self, results: list[Any]) -> int:
        """Tokens of the texts that were generated."""
        return sum(
            len(self._tokenizer(item[self.result], add_special_tokens=False).input_ids) for item in results
        )


class Summarization(_SequenceTask):
    """``{summary_text}``."""

    result = "summary_text"


class Translation(_SequenceTask):
    """``{translation_text}``; ``src_lang`` and ``tgt_lang`` for models of several languages."""

    result = "translation_text"
    parameters: ClassVar[Mapping[str, type]] = {**_SequenceTask.parameters, "src_lang": str, "tgt_lang": str}

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Lengths, and the languages where the model knows them."""
        found = super().settings(given)
        for name in ("src_lang", "tgt_lang"):
            if name not in given:
                continue
            key = f"translation_{given.get('src_lang')}_to_{given.get('tgt_lang')}"
            if key in (getattr(self._model.config, "task_specific_params", None) or {}):
                continue
            if self._tokenizer.convert_tokens_to_ids(given[name]) in (None, self._tokenizer.unk_token_id):
                raise BadRequest(f"the model does not know the language {given[name]!r}", param=name)
            found[name] = given[name]
        return found

    def _task_key(self, given: Mapping[str, Any]) -> str:
        return f"translation_{given.get('src_lang')}_to_{given.get('tgt_lang')}"

    def _forced(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The source language goes to the tokenizer, the target is the first token of the answer."""
        settings = dict(settings)
        if source := settings.pop("src_lang", None):
            self._tokenizer.src_lang = source
        if target := settings.pop("tgt_lang", None):
            settings["forced_bos_token_id"] = self._tokenizer.convert_tokens_to_ids(target)
        return settings
