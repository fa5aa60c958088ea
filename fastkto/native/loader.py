"""The native library of `csrc/`: found and loaded. Beside it, the sizes of the caches that its operators cut by."""

import functools
from pathlib import Path

import torch

from fastkto.installation import build_command

PACKAGE = Path(__file__).parents[1]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE_BYTES = {2: 1 << 20, 3: 16 << 20}


@functools.cache
def load() -> str | None:
    """Register `torch.ops.fastkto_native`; why that cannot be and what to do, on one line, or None."""
    libraries = sorted(PACKAGE.glob("_native*.so")) + sorted(PACKAGE.glob("_native*.pyd"))
    if not libraries:
        reason = PACKAGE / "_native.reason"
        why = " ".join(reason.read_text().split()) if reason.exists() else "setup.py has not run"
        return f"its library is not built: {why}. {_advice()}"
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        return f"its library does not load: {error}. {_advice()}"
    return None


def _advice() -> str:
    command = build_command()
    how = f"run: {command}" if command else "install fastkto from a checkout"
    return f"To build it, with torch and a C++ compiler there, {how}"


@functools.cache
def cache_bytes(level: int) -> int:
    """Size of the data cache of that level on this machine, or a usual size where the system does not say."""
    for index in sorted(CACHES.glob("index*")):
        if (index / "level").read_text().strip() == str(level) and "Instruction" not in (index / "type").read_text():
            size = (index / "size").read_text().strip()
            return int(size.rstrip("KM")) << {"K": 10, "M": 20}.get(size[-1], 0)
    return USUAL_CACHE_BYTES[level]
