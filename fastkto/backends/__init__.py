"""Backends of the LM head, and the choice between them. Only here are kernels and native code imported."""

import torch

from fastkto.backends.base import Backend
from fastkto.backends.native import NativeBackend
from fastkto.backends.tiles import TileBackend
from fastkto.errors import InputError

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (NativeBackend(), TileBackend())}
"""By name, the preferred first."""


def choose(name: str, device: torch.device) -> Backend:
    """The backend asked for by name, or with "auto" the first that serves the device."""
    if name == "auto":
        return next(backend for backend in BACKENDS.values() if backend.unavailable(device) is None)
    if name not in BACKENDS:
        raise InputError("backend", name, f'"auto" or one of {tuple(BACKENDS)}', "Correct the name.")
    reason = BACKENDS[name].unavailable(device)
    if reason is not None:
        fix = 'Choose backend="auto", or mend what is missing: `fastkto doctor` shows what is here.'
        raise InputError("backend", name, f"one that can serve {device} ({reason})", fix)
    return BACKENDS[name]
