"""How much memory a training can have on this machine."""

from math import ceil
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes, and whose they are."""

    size: int
    whose: str

    def __str__(self) -> str:
        return f"{in_words(self.size)} {self.whose}"


def in_words(size: int) -> str:
    """Bytes as a person reads them, not less than they are."""
    unit, name = (2**30 / 10, "GiB") if size >= 2**30 else (2**20, "MiB")
    count = ceil(size / unit)
    return f"{count / 10} {name}" if name == "GiB" else f"{count} {name}"


def memory_here(device: torch.device, cgroup: Path = CGROUP) -> Memory:
    """All of the GPU's, whose other users `process_bytes` counts; else what is free, within a container's limit."""
    if device.type == "cuda":
        return Memory(torch.cuda.get_device_properties(device).total_memory, "that the GPU has")
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return Memory(free, "that are free here")
    return Memory(min(free, limit - used), "that are free here")
