"""What this machine has: cores, memory, devices, number formats, and what is missing and why.

torch is asked in a short-lived child process, and only where an accelerator may be.
"""

import asyncio
import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from uia_lab.engine.child import environment

_PROBE_S = 120.0
_CGROUP = Path("/sys/fs/cgroup")
_NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
# Files that a driver makes, by what they are for.
_DRIVERS = {"cuda": "/dev/nvidiactl", "rocm": "/dev/kfd", "xpu": "/dev/dri/renderD128"}
_PACKAGES = {"llamacpp": ("xllamacpp",), "transformers": ("torch", "transformers")}


@dataclass(frozen=True, slots=True)
class Device:
    """Something that computes.

    Args:
        id: As torch names it: ``cpu``, ``cuda:0``, ``mps``, ``xpu:0``.
        kind: ``cpu``, ``cuda``, ``rocm``, ``mps`` or ``xpu``.
        name: Its name for people.
        memory_bytes: Its memory.
        free_bytes: What of it is free.
        dtypes: Number formats it computes in natively, the best one for generation first.
    """

    id: str
    kind: str
    name: str
    memory_bytes: int
    free_bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hardware:
    """Cores, memory and devices.

    Args:
        cores: Cores that can be used, by affinity and cgroup.
        affinity_cores: Cores this process may run on.
        cgroup_cores: Cores' worth of time that the cgroup gives; None without a bound.
        memory_bytes: Memory that can be used, by the machine and the cgroup.
        available_bytes: What of it can be had without swapping.
        devices: What computes; the processor is the last one.
        missing: What is not there, and why.
    """

    cores: int
    affinity_cores: int
    cgroup_cores: float | None
    memory_bytes: int
    available_bytes: int
    devices: tuple[Device, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        gib = 1 << 30
        free, total = self.available_bytes / gib, self.memory_bytes / gib
        others = "".join(f", {device.name}" for device in self.devices if device.kind != "cpu")
        return f"{self.cores} cores, {free:.1f} of {total:.1f} GiB memory free{others}"

    @property
    def best(self) -> Device:
        """The device to compute on where nobody names one."""
        return self.devices[0]

    def device(self, name: str) -> Device | None:
        """The device of an id or a kind, or None."""
        return next((device for device in self.devices if name in (device.id, device.kind)), None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready report."""
        return asdict(self) | {"default_device": self.best.id if self.devices else None}


def detect(accelerators: dict[str, Any] | None = None) -> Hardware:
    """Looks at the machine, without torch; takes about a millisecond.

    Args:
        accelerators: What :func:`probe_accelerators` found.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = _cgroup_cores()
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _cgroup_number("memory.max")
    if limit is not None and limit < total:
        total = limit
        available = min(available, max(0, limit - (_cgroup_number("memory.current") or 0)))
    found = accelerators or {}
    devices = [Device(**{**device, "dtypes": tuple(device["dtypes"])}) for device in found.get("devices", ())]
    processor = Device(
        "cpu", "cpu", platform.processor() or platform.machine(), total, available, cpu_dtypes()
    )
    missing = {**_absent_drivers(), **_absent_packages(), **found.get("missing", {})}
    for device in devices:
        missing.pop(device.kind, None)
    cores = allowed if quota is None else max(1, min(allowed, int(quota)))
    return Hardware(cores, allowed, quota, total, available, (*devices, processor), missing)


def cpu_dtypes() -> tuple[str, ...]:
    """Number formats of the processor: bfloat16 only where it computes in it natively."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    except OSError:
        pass
    return ("bfloat16", "float32") if flags.intersection(_NATIVE_BFLOAT16) else ("float32",)


def may_have_accelerator() -> bool:
    """Whether it is worth asking torch: a driver is there, or the machine is a Mac."""
    return sys.platform == "darwin" or any(Path(file).exists() for file in _DRIVERS.values())


async def probe_accelerators() -> dict[str, Any]:
    """Asks torch for devices, in a child process that ends at once.

    Returns:
        ``devices`` and ``missing``; torch's own word where it could not be asked.
    """
    if not may_have_accelerator() or importlib.util.find_spec("torch") is None:
        return {}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "uia_lab.engine.hardware_probe"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(),
    )
    try:
        async with asyncio.timeout(_PROBE_S):
            out, _ = await child.communicate()
        found: dict[str, Any] = json.loads(out)
    except (TimeoutError, ValueError):
        return {"missing": {"torch": "it did not say which devices there are"}}
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return found


def _absent_drivers() -> dict[str, str]:
    absent = {
        kind: f"no driver: {file} is not there" for kind, file in _DRIVERS.items() if not Path(file).exists()
    }
    if sys.platform != "darwin":
        absent["mps"] = "only on a Mac"
    return absent


def _absent_packages() -> dict[str, str]:
    absent = {}
    for engine, packages in _PACKAGES.items():
        names = [name for name in packages if importlib.util.find_spec(name) is None]
        if names:
            extra = "engine" if engine == "transformers" else engine
            absent[engine] = f"{' and '.join(names)} not installed: pip install 'uia-lab[{extra}]'"
    return absent


def _cgroup_cores() -> float | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        # The first version of cgroups.
        quota_us = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        return quota_us / int((_CGROUP / "cpu/cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _cgroup_number(name: str) -> int | None:
    old = {"memory.max": "memory/memory.limit_in_bytes", "memory.current": "memory/memory.usage_in_bytes"}
    for file in (_CGROUP / name, _CGROUP / old[name]):
        try:
            return int(file.read_text())
        except (OSError, ValueError):
            continue
    return None
