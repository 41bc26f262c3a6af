"""Models and tokenizers of transformers, loaded from a folder without running any code that lies in it."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from uia_lab.domain.errors import BackendFailed
from uia_lab.engine.frames import Load

log = logging.getLogger(__name__)


def folder_of(load: Load) -> Path:
    """The folder a model lies in."""
    path = Path(load.path)
    return path if path.is_dir() else path.parent


def load_model(load: Load, kind: str, *, optional: Collection[str] = (), **options: Any) -> Any:
    """A model, ready to compute on its device.

    Args:
        load: The model.
        kind: Name of the class of transformers that loads it, for example ``AutoModel``.
        optional: Parts of a tensor's name that may be missing, since nothing here uses it.
        **options: Further arguments of ``from_pretrained``.

    Raises:
        BackendFailed: It cannot be loaded; the message says why.
    """
    import torch
    import transformers

    try:
        model, report = getattr(transformers, kind).from_pretrained(
            folder_of(load),
            local_files_only=True,
            # Pickled weights and the repository's own Python files could run anything.
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, load.dtype),
            output_loading_info=True,
            **options,
        )
        model = model.to(load.device).eval()
    except Exception as error:
        raise BackendFailed(f"the weights of {load.model} cannot be loaded: {_first_line(error)}") from error
    # transformers draws random numbers for what is missing: such a model would answer, and mean nothing.
    missing = [name for name in sorted(report["missing_keys"]) if not any(part in name for part in optional)]
    if missing or report["mismatched_keys"]:
        names = ", ".join((missing or sorted(map(str, report["mismatched_keys"])))[:3])
        raise BackendFailed(
            f"the weights of {load.model} lack what {load.task} needs ({names}): it is another kind of model"
        )
    return model


def load_tokenizer(load: Load) -> Any:
    """The model's tokenizer.

    Raises:
        BackendFailed: There is none that can be read.
    """
    return load_part(load, "AutoTokenizer")


def load_part(load: Load, kind: str) -> Any:
    """A tokenizer or processor of the model.

    Args:
        load: The model.
        kind: Name of the class of transformers that loads it.

    Raises:
        BackendFailed: There is none that can be read.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            folder_of(load), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        what = kind.removeprefix("Auto").lower()
        raise BackendFailed(f"the {what} of {load.model} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
