"""Models in the Hugging Face hub's cache, and those that are not there yet."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uia_lab.domain.errors import BackendFailed, InferenceError, ModelNotFound
from uia_lab.engine.catalogue import Progress
from uia_lab.engine.recognise import recognise
from uia_lab.engine.sources import ModelSource

# Data only: no Python, and no pickled weights, which can hold code too.
PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.safetensors.index.json"]
MAX_SKILLS = 500


@dataclass(frozen=True, slots=True)
class Skill:
    """A model that was found and can be loaded.

    Args:
        model_id: What to load it by.
        task: Its task; empty where it cannot be loaded.
        engine: The engine it would be loaded in.
        origin: ``hub``, ``folder`` or ``file``.
        size: Bytes of its weights.
        reason: Why it cannot be loaded; empty where it can.
        estimated_bytes: Memory it would take; None where it cannot be loaded.
    """

    model_id: str
    task: str
    engine: str
    origin: str
    size: int
    reason: str = ""
    estimated_bytes: int | None = None


def from_hub(
    repo_id: str, cache_dir: Path | None = None, task: str | None = None, progress: Progress | None = None
) -> ModelSource:
    """The model of a hub id: from the cache, else downloaded where the hub may be asked. Blocks.

    Args:
        repo_id: ``owner/name``, or ``owner/name@revision``.
        cache_dir: The hub's cache; its own default when absent.
        task: Its task, where that is known better than by its files.
        progress: Called with bytes so far and bytes in all.

    Raises:
        ModelNotFound: It is neither in the cache nor to be had; the message says why.
        BackendFailed: It holds no model that can be loaded.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repo_id.partition("@")
    place: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision or None}
    try:
        try:
            folder = huggingface_hub.snapshot_download(name, local_files_only=True, **place)
        except LocalEntryNotFoundError:
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                raise
            if progress is not None:
                progress(0, 1)
            folder = huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS, **place)
    except HFValidationError as error:
        raise ModelNotFound(
            f"{repo_id!r} is neither a model here nor a hub id: {error}", param="model_id"
        ) from None
    except LocalEntryNotFoundError:
        raise ModelNotFound(
            f"{repo_id} is not in the hub's cache, and the hub cannot be asked from here", param="model_id"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"{repo_id} is not in the hub's cache and could not be downloaded: {type(error).__name__}",
            param="model_id",
        ) from None
    return recognise(Path(folder), repo_id, "hub", task)


def skills(folders: list[str], cache_dir: Path | None = None) -> list[Skill]:
    """Every model in the hub's cache and in folders, told by data files alone. Blocks.

    Args:
        folders: Folders whose entries are models: folders or GGUF files.
        cache_dir: The hub's cache; its own default when absent.
    """
    found = [_skill(path, name, origin) for path, name, origin in _places(folders, cache_dir)]
    return sorted(filter(None, found[:MAX_SKILLS]), key=lambda skill: skill.model_id)


def _places(folders: list[str], cache_dir: Path | None) -> Iterator[tuple[Path, str, str]]:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        for repo in huggingface_hub.scan_cache_dir(cache_dir).repos:
            newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
            if repo.repo_type == "model" and newest is not None:
                yield newest.snapshot_path, repo.repo_id, "hub"
    except (CacheNotFound, OSError, ValueError):
        pass
    for folder in folders:
        try:
            entries = sorted(os.scandir(Path(folder).expanduser()), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if entry.is_dir() and ((path / "config.json").is_file() or any(path.glob("*.gguf"))):
                yield path, str(path), "folder"
            elif entry.is_file() and path.suffix == ".gguf":
                yield path, str(path), "file"


def _skill(path: Path, name: str, origin: str) -> Skill | None:
    try:
        source = recognise(path, name, origin)
        needs = source.estimate(source.concurrency).total_bytes
    except BackendFailed as error:
        # A cache holds tokenizers and halves of downloads too; what is no model at all is not listed.
        if not (path / "config.json").is_file() and path.suffix != ".gguf":
            return None
        return Skill(name, "", "", origin, 0, error.message)
    except InferenceError as error:
        return Skill(name, "", "", origin, 0, error.message)
    return Skill(name, source.task, source.engine, origin, source.size, estimated_bytes=needs)
