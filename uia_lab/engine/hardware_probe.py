"""The child process that asks torch which devices there are: ``python -m uia_lab.engine.hardware_probe``."""

import json
import os
import sys
from typing import Any


def found() -> dict[str, Any]:
    """Devices as :class:`uia_lab.engine.hardware.Device` takes them, and what is missing and why."""
    import torch

    devices: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    # A build for ROCm answers as cuda.
    kind = "rocm" if torch.version.hip else "cuda"
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            dtypes = ["bfloat16", "float16", "float32"] if native else ["float16", "float32"]
            devices.append(
                _device(f"cuda:{number}", kind, torch.cuda.get_device_name(number), total, free, dtypes)
            )
    elif torch.version.cuda is None and torch.version.hip is None:
        missing["cuda"] = f"torch {torch.__version__} is a build without CUDA"
    else:
        missing[kind] = f"torch {torch.__version__} finds no device, or its driver is too old"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for number in range(torch.xpu.device_count()):
            total = torch.xpu.get_device_properties(number).total_memory
            name = torch.xpu.get_device_name(number)
            devices.append(
                _device(f"xpu:{number}", "xpu", name, total, total, ["bfloat16", "float16", "float32"])
            )
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = max(0, total - torch.mps.driver_allocated_memory())
        devices.append(_device("mps", "mps", "Apple GPU", total, free, ["float16", "float32"]))
    return {"devices": devices, "missing": missing}


def _device(name: str, kind: str, label: str, total: int, free: int, dtypes: list[str]) -> dict[str, Any]:
    return {
        "id": name, "kind": kind, "name": label,
        "memory_bytes": total, "free_bytes": free, "dtypes": dtypes,
    }  # fmt: skip


def main() -> None:
    """Prints what was found as one line of JSON."""
    # What a driver's library prints must not come between.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = found()
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is what is missing
        answer = {"missing": {"torch": f"{type(error).__name__}: {error}"[:500]}}
    out.write(json.dumps(answer))
    out.close()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
