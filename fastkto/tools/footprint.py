"""Bytes that code would have alive: its operations run on fake tensors, which have shapes and lifetimes and no data."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from fastkto.trunk import heap

WEIGHTS, REFERENCE, GRADIENTS, OPTIMIZER = "weights", "reference", "gradients", "optimizer state"
KEPT, WORK, HEAD, HOLES = "kept for the backward", "work of one layer", "head", "holes in the heap"
PARTS = (WEIGHTS, REFERENCE, GRADIENTS, OPTIMIZER, KEPT, WORK, HEAD, HOLES)
"""Of a training step."""


class Footprint(TorchDispatchMode):
    """Inside the block every storage is counted from the operation that makes it to its end, under the current label.

    `holes`: bytes that the C library keeps beside each byte of `WORK` in its heap.
    """

    def __init__(self, holes: float = 0.0) -> None:
        super().__init__()
        self.holes = holes
        self.alive: Counter[str] = Counter()
        """Bytes by label."""
        self.at_peak: Counter[str] = Counter()
        self.label = WORK
        self._labels: dict[int, str] = {}
        self._in_heap: Counter[str] = Counter()
        """Bytes in blocks that glibc keeps in its heap."""
        self._total = self._peak = 0

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Inside the block new storages get this label."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def relabel(self, tensor: torch.Tensor, label: str) -> None:
        """Count a tensor's storage under another label from now on."""
        storage = tensor.untyped_storage()
        before = self._labels.get(storage._cdata)
        if before is not None:
            self._change(before, -storage.nbytes())
            self._labels[storage._cdata] = label
            self._change(label, storage.nbytes())

    def watch_gradient(self, parameter: torch.nn.Parameter) -> RemovableHandle:
        """Count what becomes the gradient of a parameter as such."""

        def accumulated(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.relabel(parameter.grad, GRADIENTS)

        return parameter.register_post_accumulate_grad_hook(accumulated)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation; count the storages in its results that are not its arguments'."""
        kwargs = kwargs or {}
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given:
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._labels:
            return
        self._labels[key] = self.label
        self._change(self.label, size)
        weakref.finalize(storage, self._freed, key, size)
        holes = int(self.holes * self._in_heap[WORK])
        if self._total + holes > self._peak:
            self._peak, self.at_peak = self._total + holes, self.alive + Counter({HOLES: holes})

    def _freed(self, key: int, size: int) -> None:
        self._change(self._labels.pop(key), -size)

    def _change(self, label: str, size: int) -> None:
        self.alive[label] += size
        self._total += size
        if abs(size) <= heap.KEPT:
            self._in_heap[label] += size
