"""Backends of the LM head, and the choice between them. Only here are kernels and native code imported.

In: a `HeadInputs`, the arguments after all checks. Out: log-probs, statistics, gradients, the terms of the loss.

    base        the `Backend` protocol and the types that go in and come out; start here for a new backend
    tiles       plain torch, any device: a tile of logits is made, folded and forgotten
    products    the matrix products of tiles, of one shape, so that a position's bits depend on that position alone
    native      the CPU: tiles sized by its caches, and float64 by way of tiles
    native_ops  the calls of `csrc/` that native makes
    triton      the GPU: the calls of `kernels/fastkto_kernels`
    loss_terms  the loss on both sides of z0, in torch; triton has a kernel for each
    blocks      runs of whole rows that fit into a budget (the `block_bytes` of tiles and triton)

`choose` takes the first of `BACKENDS` that serves the device, and says it once where a CPU has to do without native.
What is asked for by name is used or is an error.
"""

import functools
import logging

import torch

from fastkto.errors import InputError
from fastkto.head.backends.base import Backend
from fastkto.head.backends.native import NativeBackend
from fastkto.head.backends.tiles import TileBackend
from fastkto.head.backends.triton import TritonBackend

logger = logging.getLogger(__name__)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (TritonBackend(), NativeBackend(), TileBackend())}
"""By name, the preferred first."""


def first_serving(device: torch.device) -> str:
    """The name of the preferred backend of those that serve the device."""
    return next(name for name, backend in BACKENDS.items() if backend.unavailable(device) is None)


def choose(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """The backend asked for by name, or with "auto" the first that serves the device.

    The C++ library has no float64, in which only checks run: there "native" is the tiles backend.
    """
    if name == "auto":
        name = first_serving(device)
        if name == "tiles" and device.type == "cpu" and dtype != torch.float64:
            _say_what_is_missed(BACKENDS["native"].unavailable(device))
    if name not in BACKENDS:
        raise InputError("backend", name, f'"auto" or one of {tuple(BACKENDS)}', "Correct the name.")
    reason = BACKENDS[name].unavailable(device)
    if reason is not None:
        fix = 'Choose backend="auto", or install what is missing: `fastkto doctor` shows what is available.'
        raise InputError("backend", name, f"one that can serve {device} ({reason})", fix)
    return BACKENDS["tiles" if name == "native" and dtype == torch.float64 else name]


@functools.cache
def _say_what_is_missed(reason: str | None) -> None:
    logger.warning(
        "The LM head runs on the tiles backend, which computes the same, somewhat slower than the native one. "
        f"That one cannot be used: {reason}"
    )


@torch.compiler.assume_constant_result
def chosen_name(name: str, device: str, dtype: torch.dtype) -> str:
    """`choose(name, device, dtype).name`; settled once where `torch.compile` traces through."""
    return choose(name, torch.device(device), dtype).name
