"""What people call a model, and which one that is."""

from pathlib import Path

from uia_lab.domain.errors import BadRequest, ModelNotFound, NotAllowed
from uia_lab.domain.tasks import canonical_task
from uia_lab.engine.catalogue import Catalogue, Progress
from uia_lab.engine.hub import from_hub
from uia_lab.engine.recognise import recognise
from uia_lab.engine.sources import LLAMACPP, TRANSFORMERS, ModelSource, converted, packaged


def resolve(
    reference: str,
    catalogue: Catalogue,
    *,
    engine: str | None = None,
    task: str | None = None,
    hub_cache: Path | None = None,
    paths: bool = False,
    progress: Progress | None = None,
) -> ModelSource:
    """The model that a reference stands for. Blocks: call it in a thread.

    Args:
        reference: A name of the catalogue, a folder, a GGUF file, or a hub id.
        catalogue: The packaged models.
        engine: The engine it is to run in, where it is not its own.
        task: The task it is for, where its files do not say.
        hub_cache: The hub's cache; its own default when absent.
        paths: Whether folders and files of this machine may be named.
        progress: Called with bytes so far and bytes in all of a download.

    Raises:
        BadRequest: An unknown engine or task.
        ModelNotFound: There is no such model.
        NotAllowed: A path, where none may be named.
        BackendFailed: It holds no model that can be loaded.
    """
    if engine not in (None, LLAMACPP, TRANSFORMERS):
        raise BadRequest(f"engine is {LLAMACPP} or {TRANSFORMERS}, not {engine!r}", param="options.engine")
    wanted = None if task is None else canonical_task(task)
    source = _found(reference, catalogue, wanted, hub_cache, paths=paths, progress=progress)
    if engine is None or engine == source.engine:
        return source
    if engine == LLAMACPP:
        raise BadRequest(f"{source.name} is no GGUF file: llama.cpp cannot load it", param="options.engine")
    return converted(source, catalogue.cache_dir)


def _found(
    reference: str,
    catalogue: Catalogue,
    task: str | None,
    hub_cache: Path | None,
    *,
    paths: bool,
    progress: Progress | None,
) -> ModelSource:
    try:
        return packaged(catalogue, reference)
    except ModelNotFound as error:
        unknown = error
    if reference.startswith(("/", "./", "../", "~")) or reference.endswith(".gguf"):
        if not paths:
            raise NotAllowed("only an administrator may name folders and files of this machine")
        path = Path(reference).expanduser().resolve()
        if not path.exists():
            raise ModelNotFound(f"there is nothing at {reference}", param="model_id")
        return recognise(path, path.stem if path.is_file() else path.name, _origin(path), task)
    if "/" not in reference:
        raise unknown
    return from_hub(reference, hub_cache, task, progress)


def _origin(path: Path) -> str:
    return "file" if path.is_file() else "folder"
