"""What a folder or file of weights is, told from its data files alone: none of its code is looked at."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uia_lab.domain.errors import BackendFailed
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION
from uia_lab.engine.headers import gguf_header, read_config, safetensors_weights
from uia_lab.engine.sources import CONTEXT_MOST, LLAMACPP, TRANSFORMERS, ModelSource

_SUFFIXES = (
    ("ForCausalLM", TEXT_GENERATION),
    ("LMHeadModel", TEXT_GENERATION),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForImageClassification", "image-classification"),
    ("ForCTC", "audio-transcription"),
    ("ForSpeechSeq2Seq", "audio-transcription"),
)
_HEARING = ("whisper", "speech_to_text", "moonshine")
_TRANSLATING = ("marian", "m2m_100", "fsmt", "nllb-moe")


def recognise(path: Path, name: str, origin: str, task: str | None = None) -> ModelSource:
    """The model in a folder or a GGUF file.

    Args:
        path: The folder or file.
        name: The name it gets.
        origin: ``folder``, ``file`` or ``hub``.
        task: Its task, where that is known better than by its files.

    Raises:
        BackendFailed: It holds no model that can be loaded; the message says why.
    """
    if path.is_file():
        return _gguf(path, name, origin, task)
    if not path.is_dir():
        raise BackendFailed(f"{path} is neither a folder nor a file")
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _gguf(files[0], name, origin, task)
        if files:
            names = ", ".join(file.name for file in files[:10])
            raise BackendFailed(f"{path} has several GGUF files: name one of {names}")
        raise BackendFailed(f"{path} has neither a config.json nor a GGUF file")
    config = read_config(path)
    if "auto_map" in config and not _built_in(str(config.get("model_type", ""))):
        raise BackendFailed(f"{name} runs only with its own code, which is never executed here")
    weights = safetensors_weights(path)
    found = task or _task(path, config)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    return ModelSource(
        name,
        found,
        TRANSFORMERS,
        origin,
        path,
        weights.bytes,
        min(positions if isinstance(positions, int) and positions > 0 else CONTEXT_MOST, CONTEXT_MOST),
        config,
    )


def _built_in(kind: str) -> bool:
    """Whether transformers has this kind of model itself; looked up without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not kind.replace("-", "_").isidentifier():
        return False
    return (Path(spec.origin).parent / "models" / kind.replace("-", "_")).is_dir()


def _gguf(file: Path, name: str, origin: str, task: str | None) -> ModelSource:
    header = gguf_header(file)
    kind = header.get("general.architecture", "")
    length = header.get(f"{kind}.context_length")
    if task not in (None, TEXT_GENERATION):
        raise BackendFailed(f"{name} is a GGUF file: llama.cpp here is for text-generation, not {task}")
    return ModelSource(
        name,
        TEXT_GENERATION,
        LLAMACPP,
        origin,
        file,
        file.stat().st_size,
        min(length if isinstance(length, int) and length > 0 else 2048, CONTEXT_MOST),
    )


def _task(folder: Path, config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type", ""))
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if (folder / "modules.json").is_file() or (folder / "config_sentence_transformers.json").is_file():
        return TEXT_EMBEDDING
    if architecture.endswith("ForSequenceClassification"):
        labels = config.get("label2id") if isinstance(config.get("label2id"), dict) else {}
        entails = any(str(label).lower().startswith("entail") for label in labels or ())
        return "zero-shot-classification" if entails else "text-classification"
    for suffix, task in _SUFFIXES:
        if architecture.endswith(suffix):
            return task
    if architecture.endswith(("ForConditionalGeneration", "MTModel")) or kind in _TRANSLATING:
        if kind in _HEARING:
            return "audio-transcription"
        return "translation" if kind in _TRANSLATING else "summarization"
    if architecture.endswith("Model"):
        return TEXT_EMBEDDING
    raise BackendFailed(
        f"{folder.name}: no task is known for {architecture or 'a config.json without architectures'}; "
        "name one in options.task"
    )
