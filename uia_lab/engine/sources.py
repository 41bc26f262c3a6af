"""Where a model comes from, and what is known of it before it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uia_lab.domain.errors import BadRequest
from uia_lab.domain.tasks import TEXT_GENERATION
from uia_lab.engine.catalogue import Catalogue, Progress
from uia_lab.engine.estimate import Estimate, estimate_gguf, estimate_transformers
from uia_lab.engine.headers import read_config

LLAMACPP, TRANSFORMERS = "llamacpp", "transformers"
CONCURRENCY = {LLAMACPP: 4, TRANSFORMERS: 16}
# Of what llama.cpp or a batch of transformers keep for all requests together.
CACHE_MOST_BYTES = 1 << 30
CONTEXT_MOST = 8192


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that lies on this machine.

    Args:
        name: The name requests ask for it by.
        task: The task it is for.
        engine: ``llamacpp`` or ``transformers``.
        origin: ``catalogue``, ``folder``, ``file`` or ``hub``.
        path: Its weights file or folder.
        size: Bytes of its weights, or of what has to be fetched.
        context_length: Tokens one request may use here.
        config: Its ``config.json``; empty for a GGUF file.
        digest: Digest of its weights, if known.
        dtype: Number format it is loaded in.
    """

    name: str
    task: str
    engine: str
    origin: str
    path: Path
    size: int
    context_length: int
    config: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    dtype: str = "float32"

    @property
    def concurrency(self) -> int:
        """Requests it works on at once."""
        return CONCURRENCY[self.engine] if self.task == TEXT_GENERATION else 64

    def is_here(self) -> bool:
        """Whether it can be loaded without fetching anything; cheap."""
        return self.path.exists()

    def fetch(self, _progress: Progress | None = None) -> Path:
        """Its weights file or folder; blocks where something has to be fetched.

        Raises:
            BackendFailed: It cannot be had; the message says why and what to do.
        """
        return self.path

    def estimate(self, concurrency: int) -> Estimate:
        """How much memory it takes; reads the head of its files only.

        Args:
            concurrency: Requests at once.

        Raises:
            BackendFailed: Its files are missing or damaged.
        """
        tokens = concurrency * self.context_length
        if self.engine == LLAMACPP:
            return estimate_gguf(self.path, tokens)
        folder = self.path if self.path.is_dir() else self.path.parent
        generates = self.task == TEXT_GENERATION
        config = self.config or read_config(folder)
        return estimate_transformers(
            folder, config, self.dtype, generates=generates, tokens=tokens, most=CACHE_MOST_BYTES
        )


@dataclass(frozen=True, slots=True)
class PackagedSource(ModelSource):
    """A model of the catalogue; it is fetched when it is first needed."""

    catalogue: Catalogue | None = field(default=None, repr=False)

    def is_here(self) -> bool:
        """Whether its files are in the cache in their right sizes."""
        assert self.catalogue is not None
        return self.catalogue.is_cached(self.name)

    def fetch(self, progress: Progress | None = None) -> Path:
        """Its weights file, fetched and verified."""
        assert self.catalogue is not None
        return self.catalogue.fetch(self.name, progress)


@dataclass(frozen=True, slots=True)
class ConvertedSource(ModelSource):
    """Safetensors made once out of a GGUF file, for transformers."""

    origin_source: ModelSource | None = field(default=None, repr=False)

    def is_here(self) -> bool:
        """Whether the conversion has been made."""
        return (self.path / "model.safetensors").is_file()

    def fetch(self, progress: Progress | None = None) -> Path:
        """The folder, made where it is missing; that takes one or two minutes."""
        from uia_lab.engine.convert import convert

        assert self.origin_source is not None
        if not self.is_here():
            convert(self.origin_source.fetch(progress), self.path, progress)
        return self.path


def packaged(catalogue: Catalogue, name: str) -> PackagedSource:
    """A model of the catalogue.

    Raises:
        ModelNotFound: It has none of that name.
    """
    entry = catalogue.entry(name)
    return PackagedSource(
        entry.name,
        entry.task,
        entry.engine,
        "catalogue",
        catalogue.cache_dir / entry.name / entry.weights.target,
        entry.wheel_bytes,
        entry.context_length,
        digest=entry.weights.sha256,
        catalogue=catalogue,
    )


def converted(source: ModelSource, folder: Path) -> ConvertedSource:
    """The same model for transformers, out of its GGUF file.

    Args:
        source: The model as a GGUF file.
        folder: Where conversions are kept.

    Raises:
        BadRequest: It is no GGUF file.
    """
    if source.engine != LLAMACPP:
        raise BadRequest(
            f"{source.name} is no GGUF file: there is nothing to convert", param="options.engine"
        )
    return ConvertedSource(
        source.name,
        source.task,
        TRANSFORMERS,
        source.origin,
        folder / f"{source.name.replace('/', '--')}-safetensors",
        source.size,
        source.context_length,
        origin_source=source,
    )
