"""Memory that was freed but not given back.

The C library keeps freed blocks that lie between live ones. Training on a CPU frees large temporaries between the few
activations that live on to the backward, layer after layer: resident memory grows by gigabytes that nothing uses.
"""

import ctypes
from collections.abc import Callable
from functools import cache

LARGE = 2**20
"""Bytes. Temporaries of a layer with smaller hidden states are not worth a walk through the heap."""

KEPT = 32 * 2**20
"""Bytes. glibc maps larger blocks one by one and unmaps them when they are freed; smaller ones stay in its heap."""


def give_back() -> None:
    """Hand free pages of the heap back to the system; does nothing where the C library is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        return None
    return trim
