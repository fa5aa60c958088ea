"""How much memory a training can have on this machine."""

from pathlib import Path
from typing import NamedTuple

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


GIB = 2**30


class Memory(NamedTuple):
    """Bytes, and whose they are."""

    size: int
    whose: str

    def __str__(self) -> str:
        return f"{self.size / GIB:.1f} GiB {self.whose}"


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
