"""The operators of the native library on slices of a head."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastkto.head.backends.base import HeadInputs, HeadOutputs
from fastkto.head.backends.products import operand


class Columns(NamedTuple):
    """A slice of the vocabulary, as float32 operands."""

    start: int
    weight_CD: torch.Tensor
    bias_C: torch.Tensor | None


def widened(head: HeadInputs) -> bool:
    """Whether slices of the weight are copied on the way to float32."""
    return head.compute_dtype != torch.float32 or head.weight_VD.dtype != torch.float32


def groups(head: HeadInputs, width: int) -> Iterator[Columns]:
    """The vocabulary in slices of `width`, widened to float32."""
    for start in range(0, head.weight_VD.shape[0], width):
        bias = None if head.bias_V is None else head.bias_V[start : start + width].float().contiguous()
        yield Columns(start, operand(head.weight_VD[start : start + width], head), bias)


class Statistics:
    """Running statistics of N positions, in float64: rows are the largest logit, the sum, the target's logit, ..."""

    def __init__(self, positions: int) -> None:
        self.table = torch.zeros(5, positions, dtype=torch.float64)
        self.max_N, self.sum_N, self.target_N, self.weighted_N, self.total_N = self.table.unbind()
        self.max_N.fill_(-torch.inf)

    def finish(self, head: HeadInputs, *, stats: bool) -> HeadOutputs:
        """Close the sums: logsumexp, log-probs, entropy, mean logit, rounded once to float32."""
        log_sum_N = self.sum_N.log()
        lse_N = self.max_N + log_sum_N
        logps_N = (self.target_N - lse_N).masked_fill_(head.ignored_N, 0.0).float()
        if not stats:
            return HeadOutputs(logps_N, lse_N.float(), None, None, None)
        entropy_N = log_sum_N - self.weighted_N / self.sum_N
        return HeadOutputs(
            logps_N, lse_N.float(), entropy_N.float(), (self.total_N / head.weight_VD.shape[0]).float(), None
        )


def matrix(buffer: torch.Tensor, rows: int, columns: Columns, before: int = 0) -> torch.Tensor:
    """(rows, C) in a flat buffer, behind the matrices of `before` columns."""
    width = columns.weight_CD.shape[0]
    return buffer[before * rows : (before + width) * rows].view(rows, width)


def fold(
    head: HeadInputs,
    part: slice,
    columns: Columns,
    width: int,
    statistics: Statistics,
    logits: torch.Tensor | None,
    *,
    stats: bool,
) -> None:
    """Take `columns` into the statistics of `part`, in tiles of `width`; bare products (rows, C) stay in `logits`."""
    torch.ops.fastkto_native.fold(
        operand(head.hidden_ND[part], head),
        columns.weight_CD,
        columns.bias_C,
        head.targets_N[part].contiguous(),
        columns.start,
        head.scale,
        head.softcap or 0.0,
        width,
        stats,
        logits,
        statistics.table[:, part],
    )


def gradient(
    head: HeadInputs,
    targets: torch.Tensor,
    hidden: torch.Tensor,
    columns: Columns,
    width: int,
    lse: torch.Tensor,
    grad: torch.Tensor,
    logits: torch.Tensor,
    *,
    recompute: bool,
) -> None:
    """Bare products (rows, C) to `grad * (onehot(target) - exp(z - lse)) * dz/dx`; a target below 0 is none."""
    torch.ops.fastkto_native.gradient(
        hidden,
        columns.weight_CD,
        columns.bias_C,
        targets.contiguous(),
        columns.start,
        head.scale,
        head.softcap or 0.0,
        width,
        lse,
        grad,
        recompute,
        logits,
    )


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, fresh: bool) -> None:
    """`total = a @ b`, or `total += a @ b` unless `fresh`; a row of `total` depends on its own row of `a` alone."""
    torch.ops.fastkto_native.product(total, a, b, not fresh)
