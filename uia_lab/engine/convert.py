"""GGUF to safetensors, once, in a process of its own: ``python -m uia_lab.engine.convert FILE FOLDER``."""

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from uia_lab.domain.errors import BackendFailed
from uia_lab.engine.catalogue import Progress
from uia_lab.engine.child import environment

_CONVERT_S = 900.0


def convert(file: Path, folder: Path, progress: Progress | None = None) -> None:
    """Makes a folder that transformers loads in half a second out of a GGUF file.

    Args:
        file: The GGUF file.
        folder: The folder to make; nothing is there before all of it is.
        progress: Called now and then with 0 of 1; what it raises ends the conversion.

    Raises:
        BackendFailed: It cannot be converted; the message says why.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        _wait_for(lock.fileno(), progress)
        if (folder / "model.safetensors").is_file():
            return
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
            made = Path(work) / "model"
            _run(file, made, Path(work) / "log", progress)
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)


def _wait_for(lock: int, progress: Progress | None) -> None:
    end = time.monotonic() + _CONVERT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise BackendFailed("another process has been converting the model for too long") from None
            if progress is not None:
                progress(0, 1)
            time.sleep(0.2)
        else:
            return


def _run(file: Path, made: Path, log: Path, progress: Progress | None) -> None:
    command = [sys.executable, "-P", "-m", "uia_lab.engine.convert", str(file), str(made)]
    end = time.monotonic() + _CONVERT_S
    with (
        log.open("w+b") as out,
        subprocess.Popen(  # noqa: S603 - a fixed argument list, no shell
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment()
        ) as child,
    ):
        try:
            while child.poll() is None and time.monotonic() < end:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                if progress is not None:
                    progress(0, 1)
        finally:
            if late := child.poll() is None:
                child.kill()
    if child.returncode != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        why = f"it took over {_CONVERT_S:.0f} s" if late else (lines or ["it said nothing"])[-1].strip()[:500]
        raise BackendFailed(f"{file.name} cannot be converted for transformers: {why}")


def main() -> None:
    """Converts, in this process."""
    import torch
    import transformers

    file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **place, local_files_only=True, dtype=torch.float32
    )
    # save_pretrained refuses a model that came out of a GGUF file; one with the same numbers it takes.
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    fresh.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
