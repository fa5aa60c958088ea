# mypy: allow-untyped-defs, allow-incomplete-defs
"""Second reduction: the partials of all vocabulary splits to log-probs, logsumexp, entropy and mean logit."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import launch
from .pieces import above_minus_infinity


class Partials(NamedTuple):
    """One number for each split and position, (S, N), but for `picked`."""

    peak: torch.Tensor
    """Largest logit."""
    total: torch.Tensor
    """Sum of exp(z - peak)."""
    weighted: torch.Tensor | None
    """Sum of exp(z - peak) * (z - peak); with statistics only."""
    plain: torch.Tensor | None
    """Sum of z; with statistics only."""
    picked: torch.Tensor
    """(N,) the target's logit, written by the split that holds it."""

    @classmethod
    def empty(cls, splits: int, positions: int, like: torch.Tensor, dtype: torch.dtype, *, stats: bool) -> "Partials":
        """Uninitialised: every entry that is read is written first."""

        def new(*shape: int) -> torch.Tensor:
            return like.new_empty(shape, dtype=dtype)

        each = splits, positions
        return cls(new(*each), new(*each), new(*each) if stats else None, new(*each) if stats else None, new(positions))

    def part(self, split: int, rows: slice) -> "Partials":
        """Views that begin at a split, on some of the positions."""
        weighted = None if self.weighted is None else self.weighted[split:, rows]
        plain = None if self.plain is None else self.plain[split:, rows]
        return Partials(self.peak[split:, rows], self.total[split:, rows], weighted, plain, self.picked[rows])


class Kept(NamedTuple):
    """A block's exponentials, in the dtype of the GEMMs' operands, until they are turned into the gradient."""

    values: torch.Tensor
    """(N, V), rows padded to a multiple of 16 bytes: exp(z - anchor) * slope, then the unit gradient."""
    anchors: torch.Tensor
    """(tiles, N): what the exponentials of a tile are relative to."""


class Outputs(NamedTuple):
    """Per position (N,), float32 (float64 for float64 operands)."""

    logps: torch.Tensor
    lse: torch.Tensor
    entropy: torch.Tensor | None
    mean_logits: torch.Tensor | None

    @classmethod
    def empty(cls, positions: int, like: torch.Tensor, dtype: torch.dtype, *, stats: bool) -> "Outputs":
        """Uninitialised."""

        def one() -> torch.Tensor:
            return like.new_empty(positions, dtype=dtype)

        return cls(one(), one(), one() if stats else None, one() if stats else None)

    def part(self, rows: slice) -> "Outputs":
        """Views on some of the positions."""
        return Outputs(*(None if x is None else x[rows] for x in self))  # type: ignore[arg-type]


@triton.jit(do_not_specialize=["N", "splits"], do_not_specialize_on_alignment=["targets", "logps", "lse"])
def combine_kernel(
    peak, total, weighted, plain, picked, targets, logps, lse, entropy, mean, N, splits, V, BLOCK: tl.constexpr
):
    """Splits are taken in order, whatever program wrote them. A target outside [0, V) that is not -100 gives NaN."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = rows < N
    highest = tl.full((BLOCK,), float("-inf"), peak.dtype.element_ty)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * N + rows
        highest = tl.maximum(highest, tl.load(peak + at, mask=here, other=0.0))
    anchor = above_minus_infinity(highest)
    exponentials = tl.zeros((BLOCK,), peak.dtype.element_ty)
    products = tl.zeros((BLOCK,), peak.dtype.element_ty)
    logits = tl.zeros((BLOCK,), peak.dtype.element_ty)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * N + rows
        gap = tl.load(peak + at, mask=here, other=0.0) - anchor
        share = tl.load(total + at, mask=here, other=1.0) * tl.exp(gap)
        exponentials += share
        if weighted is not None:
            sunk = tl.where(share > 0, share * gap, 0.0)
            products += tl.load(weighted + at, mask=here, other=0.0) * tl.exp(gap) + sunk
            logits += tl.load(plain + at, mask=here, other=0.0)
    log_total = tl.log(exponentials)
    log_sum = highest + log_total
    target = tl.load(targets + rows, mask=here, other=-100)
    known = (target >= 0) & (target < V)
    logp = tl.load(picked + rows, mask=here & known, other=float("nan")) - log_sum
    tl.store(logps + rows, tl.where(target == -100, 0.0, logp), mask=here)
    tl.store(lse + rows, log_sum, mask=here)
    if weighted is not None:
        tl.store(entropy + rows, log_total - products / exponentials, mask=here)
        tl.store(mean + rows, logits / V, mask=here)


def combine(partials: Partials, targets: torch.Tensor, outputs: Outputs, vocabulary: int) -> None:
    """Fill the outputs from the partials of every split."""
    splits, positions = partials.peak.shape
    block = 128
    launch(
        combine_kernel,
        triton.cdiv(positions, block),
        targets.device,
        *partials,
        targets,
        *outputs,
        positions,
        splits,
        vocabulary,
        BLOCK=block,
    )
