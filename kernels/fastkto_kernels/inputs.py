"""What a head call is made of, and the slabs its weight is read in. Legend: N positions, D hidden, V vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .launch import arch_of
from .table import Plan, plan_for

SLAB_BYTES = 32 << 20
"""Of a weight slab that is cast to the operands' dtype: a V x D copy never exists."""


@dataclass(frozen=True)
class Head:
    """Logits are `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`; a target of -100 is ignored."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    compute_dtype: torch.dtype | None = None
    """Dtype of the GEMMs' operands; that of `hidden` if None."""
    plan: Plan | None = None
    """Route and tiles; the table's choice if None."""

    @property
    def operands(self) -> torch.dtype:
        """Dtype of the GEMMs' operands."""
        return self.compute_dtype or self.hidden.dtype

    def chosen(self) -> Plan:
        """The plan that runs: a function of the architecture, the dtype and D alone."""
        if self.plan is not None:
            return self.plan
        arch = arch_of(self.hidden.device)
        if arch is None:
            raise ValueError(f"hidden: got a tensor on {self.hidden.device}, expected a CUDA GPU of compute 8.0 or up.")
        return plan_for(arch, self.operands, self.weight.shape[1])

    def rows(self, rows: slice) -> "Head":
        """The same head on some of the positions, with operands that the kernels can read."""
        hidden = _operand(self.hidden[rows], self.operands)
        targets = self.targets[rows].contiguous()
        return Head(
            hidden, self.weight, targets, self.bias, self.softcap, self.scale, self.compute_dtype, self.chosen()
        )


def slabs(head: Head, unit: int, limit: int | None = None) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """(first column, weight rows as operands, bias) in multiples of `unit`; all at once if nothing sets a limit."""
    weight, vocabulary = head.weight, head.weight.shape[0]
    step = limit or vocabulary
    if weight.dtype != head.operands or weight.stride(1) != 1:
        fit = SLAB_BYTES // (head.operands.itemsize * max(1, weight.shape[1]))
        step = min(step, max(1, fit // unit) * unit)
    for rows in slices(vocabulary, step):
        bias = None if head.bias is None else head.bias[rows].contiguous()
        yield rows.start, _operand(weight[rows], head.operands), bias


def slices(count: int, step: int) -> Iterator[slice]:
    """[0, count) in pieces of `step`."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _operand(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    x = x.to(dtype)
    return x if x.stride(1) == 1 else x.contiguous()
