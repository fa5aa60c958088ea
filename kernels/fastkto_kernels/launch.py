"""What the host knows about where a kernel will run; nothing here waits for the GPU."""

import contextvars
import functools
import os
from typing import Any

import torch
import triton

from .table import architecture

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Triton decides once, when a kernel is defined."""


@functools.cache
def arch_of(device: torch.device) -> str | None:
    """The table's key for a device; None where the kernels cannot run."""
    if INTERPRETING:
        return "interpreter"
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return architecture(*torch.cuda.get_device_capability(device))


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; 2 in the interpreter, so that the persistent loop turns."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
    """`kernel[(programs,)](*args, **options)` on the device, with memory for device-side descriptors.

    Fused multiply-adds are left to the source: two specialisations of one kernel then round alike.
    """
    if programs == 0:
        return
    if INTERPRETING:
        kernel[(programs,)](*args, **options)
        return

    def run() -> None:
        triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device=device))
        with torch.cuda.device(device):
            kernel[(programs,)](*args, enable_fp_fusion=False, **options)

    contextvars.copy_context().run(run)  # the allocator set above ends with this context


def descriptor_ready(x: torch.Tensor) -> bool:
    """Whether a tensor descriptor can describe this matrix: 16-byte base and row stride, unit column stride."""
    return x.stride(1) == 1 and x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
