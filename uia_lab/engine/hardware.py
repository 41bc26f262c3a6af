"""What this machine has, as far as it can be told without loading a framework."""

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Hardware:
    """Cores and memory.

    Args:
        cores: Cores this process may use, by its affinity.
        memory_bytes: Physical memory.
        available_bytes: Memory that can be had without swapping.
    """

    cores: int
    memory_bytes: int
    available_bytes: int

    def __str__(self) -> str:
        gib = 1 << 30
        free, total = self.available_bytes / gib, self.memory_bytes / gib
        return f"{self.cores} cores, {free:.1f} of {total:.1f} GiB memory free"


def detect() -> Hardware:
    """Looks at the machine."""
    memory = psutil.virtual_memory()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return Hardware(cores, memory.total, memory.available)
