"""How each task reads its inputs and computes them, over transformers' pipelines where there is one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from uia_lab.domain.errors import BadRequest
from uia_lab.engine.frames import Load
from uia_lab.engine.media import image, resampled, sound
from uia_lab.engine.pretrained import load_model, load_part, load_tokenizer

_SAMPLES_A_TOKEN = 320
_IMAGE_TOKENS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One input of a batch.

    Args:
        value: What the task computes with.
        length: Its cost, in tokens.
    """

    value: Any
    length: int


class Task:
    """Base of the tasks: a pipeline over texts.

    Attributes:
        parameters: What a request may set, each with its type.
        longest: Tokens the model reads; 0 for no bound.
        counts_tokens: Whether lengths are tokens of a tokenizer.
    """

    pipeline: ClassVar[str] = ""
    auto_class: ClassVar[str] = ""
    parameters: ClassVar[Mapping[str, type]] = {}
    counts_tokens: ClassVar[bool] = True
    longest = 0

    def __init__(self, load: Load) -> None:
        self._tokenizer: Any = load_tokenizer(load)
        self._model: Any = load_model(load, self.auto_class, optional=("pooler",))
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.longest = min(positions or 1 << 20, self._tokenizer.model_max_length)
        self._batches = self._tokenizer.pad_token_id is not None
        self._pipe = self._pipeline(tokenizer=self._tokenizer) if self.pipeline else None

    def _pipeline(self, **parts: Any) -> Any:
        from transformers import pipeline

        return pipeline(self.pipeline, model=self._model, device=self._model.device, **parts)

    def is_one(self, _values: list[Any]) -> bool:
        """Whether a list is one input and not several."""
        return False

    def prepare(self, value: Any, _given: Mapping[str, Any]) -> Input:
        """Reads an input.

        Raises:
            BadRequest: It is not what the task computes with.
        """
        if not isinstance(value, str) or not value.strip():
            raise BadRequest("inputs must be a text or a list of texts, none empty", param="inputs")
        return Input(value, self._tokens(value))

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the computation is called with."""
        return dict(given)

    def run(self, items: Sequence[Input], settings: dict[str, Any]) -> list[Any]:
        """The result of each input."""
        assert self._pipe is not None
        size = len(items) if self._batches else 1
        results = self._pipe([item.value for item in items], batch_size=size, **settings)
        # One input in a list comes back bare from some pipelines.
        return results if len(items) > 1 or _is_list_of(results, 1) else [results]

    def output_tokens(self, _results: list[Any]) -> int:
        """Tokens generated."""
        return 0

    def _tokens(self, *texts: str) -> int:
        return len(self._tokenizer(*texts, verbose=False).input_ids)


class TextClassification(Task):
    """Labels with scores, best first."""

    pipeline = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    parameters: ClassVar[Mapping[str, type]] = {"top_k": int, "function_to_apply": str}

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``top_k`` labels of each text, one where that is absent."""
        if given.get("function_to_apply", "none") not in ("sigmoid", "softmax", "none"):
            raise BadRequest("function_to_apply is sigmoid, softmax or none", param="function_to_apply")
        return {"top_k": 1, **given}


class TokenClassification(Task):
    """Named entities and the like: label, score, word and place."""

    pipeline = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    parameters: ClassVar[Mapping[str, type]] = {"aggregation_strategy": str}

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """How pieces of words are put together."""
        known = ("none", "simple", "first", "average", "max")
        if given.get("aggregation_strategy", "none") not in known:
            raise BadRequest(
                f"aggregation_strategy is one of {', '.join(known)}", param="aggregation_strategy"
            )
        return dict(given)


class FillMask(Task):
    """The likeliest words for the mask."""

    pipeline = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    parameters: ClassVar[Mapping[str, type]] = {"top_k": int, "targets": list}

    def prepare(self, value: Any, given: Mapping[str, Any]) -> Input:
        """A text with a mask in it."""
        item = super().prepare(value, given)
        if self._tokenizer.mask_token not in value:
            raise BadRequest(f"the text has no mask: write {self._tokenizer.mask_token}", param="inputs")
        return item


class ZeroShotClassification(Task):
    """Scores of labels that the request names, by a model for textual entailment."""

    pipeline = "zero-shot-classification"
    auto_class = "AutoModelForSequenceClassification"
    parameters: ClassVar[Mapping[str, type]] = {
        "candidate_labels": list,
        "multi_label": bool,
        "hypothesis_template": str,
    }

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The labels, which there must be."""
        if "candidate_labels" not in given:
            raise BadRequest("candidate_labels is missing: a list of texts", param="candidate_labels")
        template = given.get("hypothesis_template", "{}")
        if template.count("{}") != 1 or template.replace("{}", "").count("{"):
            raise BadRequest("hypothesis_template must have one {} in it", param="hypothesis_template")
        return dict(given)

    def prepare(self, value: Any, given: Mapping[str, Any]) -> Input:
        """A text; it is read once for each label."""
        item = super().prepare(value, given)
        template = given.get("hypothesis_template", "This example is {}.")
        longest = max(
            (template.replace("{}", label) for label in given.get("candidate_labels", [""])), key=len
        )
        return Input(item.value, self._tokens(item.value, longest))


class ImageClassification(Task):
    """Labels with scores, best first."""

    pipeline = "image-classification"
    auto_class = "AutoModelForImageClassification"
    parameters: ClassVar[Mapping[str, type]] = {"top_k": int}
    counts_tokens = False

    def __init__(self, load: Load) -> None:
        self._model = load_model(load, self.auto_class)
        self._batches = True
        self._pipe = self._pipeline(image_processor=load_part(load, "AutoImageProcessor"))

    def is_one(self, values: list[Any]) -> bool:
        """Rows of pixels are one image."""
        return bool(values) and isinstance(values[0], list) and bool(values[0]) and _is_pixel(values[0][0])

    def prepare(self, value: Any, _given: Mapping[str, Any]) -> Input:
        """An image, decoded."""
        return Input(image(value), _IMAGE_TOKENS)


class AudioTranscription(Task):
    """The text that is spoken."""

    pipeline = "automatic-speech-recognition"
    parameters: ClassVar[Mapping[str, type]] = {"sampling_rate": int}
    counts_tokens = False

    def __init__(self, load: Load) -> None:
        from transformers import AutoConfig, AutoModelForSpeechSeq2Seq

        from uia_lab.engine.pretrained import folder_of

        config = AutoConfig.from_pretrained(folder_of(load), local_files_only=True, trust_remote_code=False)
        sequence = type(config) in AutoModelForSpeechSeq2Seq._model_mapping  # noqa: SLF001
        self._model = load_model(load, "AutoModelForSpeechSeq2Seq" if sequence else "AutoModelForCTC")
        extractor = load_part(load, "AutoFeatureExtractor")
        self._rate: int = extractor.sampling_rate
        self._batches = not sequence
        self._pipe = self._pipeline(tokenizer=load_tokenizer(load), feature_extractor=extractor)

    def is_one(self, values: list[Any]) -> bool:
        """A list of numbers is one sound."""
        return bool(values) and isinstance(values[0], (int, float))

    def prepare(self, value: Any, given: Mapping[str, Any]) -> Input:
        """A sound, at the rate of the model."""
        samples, rate = sound(value, given.get("sampling_rate"))
        samples = resampled(samples, rate, self._rate)
        return Input({"raw": samples, "sampling_rate": self._rate}, -(-len(samples) // _SAMPLES_A_TOKEN))

    def settings(self, _given: Mapping[str, Any]) -> dict[str, Any]:
        """None: the rate has been seen to."""
        return {}

    def run(self, items: Sequence[Input], settings: dict[str, Any]) -> list[Any]:
        """The text of each sound."""
        assert self._pipe is not None
        # The pipeline takes the samples out of the objects it is given.
        return [
            {"text": result["text"]}
            for result in self._pipe(
                [dict(item.value) for item in items],
                batch_size=len(items) if self._batches else 1,
                **settings,
            )
        ]


def _is_pixel(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(item, int) for item in value)


def _is_list_of(results: Any, count: int) -> bool:
    return isinstance(results, list) and len(results) == count and isinstance(results[0], (list, Mapping))
