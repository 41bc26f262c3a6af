"""What every process that this one starts for a model has in common."""

import os
import signal
from pathlib import Path

# Named, not filtered: what a secret is called, nobody knows.
_PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_", "TZ", "TMP", "TEMP", "XDG_", "VIRTUAL_ENV"),
    *("PYTHON", "LD_", "DYLD_", "SYSTEMROOT", "UIA_MODEL_CACHE", "HF_", "TRANSFORMERS_"),
    *("TORCH", "PYTORCH", "GGML_", "LLAMA_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "NUMEXPR_"),
    *("CUDA", "NVIDIA_", "NCCL_", "HIP_", "HSA_", "ROCR_", "ROCM_", "GPU_", "ZE_", "SYCL_", "ONEAPI_"),
)
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")


def environment() -> dict[str, str]:
    """The child's environment: what libraries and devices need of the server's, and none of its secrets."""
    values = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PASSED) and not name.upper().endswith(_SECRET)
    }
    values["HF_HUB_OFFLINE"] = "1"
    values["TOKENIZERS_PARALLELISM"] = "false"
    # OpenMP's threads spin while they wait for one another: as soon as another process wants a core, all of
    # them wait for it many times a token, and generation is five times slower than with threads that sleep.
    values.setdefault("OMP_WAIT_POLICY", "passive")
    root = Path(__file__).parents[2]
    if root.name != "site-packages":
        # A checkout that is not installed: found by the server through its own sys.path only.
        values["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), values.get("PYTHONPATH", "")]))
    return values


def ending(code: int) -> str:
    """How a process ended, in words, by its return code."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
