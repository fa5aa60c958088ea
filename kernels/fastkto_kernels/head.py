"""The LM head out of the kernels: forward, and two ways back. Legend: N positions, D hidden, V vocabulary.

Weights that are not in the operands' dtype are cast slab by slab, so no V x D copy exists.
"""

from typing import NamedTuple

import torch

from .combine import Kept, Outputs
from .gradient import kept_gradient
from .inputs import Head, slabs, slices
from .matmul import in_range, matmul_into, sum_dtype, times_weight, write_product
from .produce import empty_kept, score, unit_gradient

PARTIAL_BYTES = 15 << 20
"""Partials of one pass; positions beyond go into a next one."""
FORWARD_BYTES = 32 << 20
"""What a no-grad stream needs at most, partials and fold tile, beside its results."""
CHUNK_BYTES = 256 << 20
"""Of unit gradient that the recomputing backward holds for all positions."""
FROZEN_BYTES = 256 << 20
"""Of exponentials kept to form d logp / d hidden in the forward."""


class Gradients(NamedTuple):
    """In the inputs' dtypes; None where not asked for."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


@torch.no_grad()
def forward(head: Head, *, stats: bool = False, unit_dx: bool = False) -> tuple[Outputs, torch.Tensor | None]:
    """`z.log_softmax(1).gather(1, targets[:, None])[:, 0]` and logsumexp; O(N) results beside one tile.

    `stats` adds entropy (nats) and mean logit. `unit_dx` adds d logp / d hidden (N, D), for a frozen weight: blocks
    of `FROZEN_BYTES` of exponentials become it with one more GEMM, 4 NDV in all.
    """
    positions = head.hidden.shape[0]
    outputs = Outputs.empty(positions, head.hidden, sum_dtype(head.operands), stats=stats)
    gradient = torch.empty_like(head.hidden) if unit_dx else None
    limit = kept_positions(head, FROZEN_BYTES) if unit_dx else _pass_positions(head, stats=stats)
    for part in slices(positions, limit):
        block, out = head.rows(part), outputs.part(part)
        kept = empty_kept(block) if unit_dx else None
        score(block, out, kept)
        if gradient is not None and kept is not None:
            kept_gradient(
                kept,
                block.targets,
                out,
                head.weight.shape[0],
                scale=head.scale,
                softcap=head.softcap,
                plan=block.chosen(),
            )
            gradient[part] = times_weight(kept.values, block)
        del kept  # before the next block's is allocated
    return outputs, gradient


@torch.no_grad()
def backward(head: Head, lse: torch.Tensor, grad: torch.Tensor, *, hidden: bool, weight: bool, bias: bool) -> Gradients:
    """Gradients of `(grad * logps).sum()`, recomputing the logits; see `backward_into`."""
    dx = torch.empty_like(head.hidden) if hidden else None
    dw = torch.empty_like(head.weight) if weight else None
    db = torch.empty_like(head.bias) if bias and head.bias is not None else None
    backward_into(head, lse, grad, dx=dx, dw=dw, db=db, accumulate=False)
    return Gradients(dx, dw, db)


@torch.no_grad()
def backward_into(
    head: Head,
    lse: torch.Tensor,
    grad: torch.Tensor,
    *,
    dx: torch.Tensor | None,
    dw: torch.Tensor | None,
    db: torch.Tensor | None,
    accumulate: bool,
) -> None:
    """`backward` by vocabulary chunks of the unit gradient, 8 NDV with the forward; dW and d bias may be added to.

    All N rows at once and each slice of dW written once: deterministic, no float32 copy of dW. With `accumulate`,
    `dw` and `db` are in the sums' dtype.
    """
    block, grad = head.rows(slice(None)), _upstream(head, grad)
    factors = _factors(block, grad, weight=dw is not None)
    sums = None if dx is None else dx.new_empty(dx.shape, dtype=sum_dtype(head.operands))
    for first, slab, slab_bias in slabs(head, block.chosen().split_columns, _chunk_columns(block)):
        columns = slice(first, first + slab.shape[0])
        unit = block.hidden.new_empty(block.hidden.shape[0], slab.shape[0])
        unit_gradient(block, slab, slab_bias, first, lse, unit)
        if sums is not None:
            matmul_into(sums, unit, slab, accumulate=first > 0)
        _write_sums(dw, db, columns, unit, factors, accumulate=accumulate)
    if dx is not None and sums is not None:
        dx.copy_(sums.mul_(grad[:, None]))


@torch.no_grad()
def block_forward(head: Head, *, stats: bool = False) -> tuple[Outputs, Kept]:
    """`forward` of a block whose exponentials stay (V x N in the operands' dtype) for `block_backward`."""
    block = head.rows(slice(None))
    outputs = Outputs.empty(block.hidden.shape[0], block.hidden, sum_dtype(head.operands), stats=stats)
    kept = empty_kept(block)
    score(block, outputs, kept)
    return outputs, kept


@torch.no_grad()
def block_backward(
    head: Head,
    outputs: Outputs,
    kept: Kept,
    grad: torch.Tensor,
    *,
    dx: torch.Tensor | None,
    dw: torch.Tensor | None,
    db: torch.Tensor | None,
    accumulate: bool,
) -> None:
    """Gradients of `(grad * logps).sum()` of a block: dX written, dW and d bias written or added to. Uses `kept` up.

    2 NDV each, so 6 with the forward. With `accumulate`, `dw` and `db` are in the sums' dtype.
    """
    block, grad = head.rows(slice(None)), _upstream(head, grad)
    kept_gradient(
        kept,
        block.targets,
        outputs,
        head.weight.shape[0],
        scale=head.scale,
        softcap=head.softcap,
        plan=block.chosen(),
    )
    if dx is not None:
        dx.copy_(times_weight(kept.values, block).mul_(grad[:, None]))
    factors = _factors(block, grad, weight=dw is not None)
    _write_sums(dw, db, slice(None), kept.values, factors, accumulate=accumulate)


def kept_positions(head: Head, limit: int) -> int:
    """Positions whose exponentials fit in `limit` bytes, in whole tiles of the GEMM where that many fit."""
    fit = max(1, limit // (head.operands.itemsize * head.weight.shape[0]))
    whole = head.chosen().tile.rows
    return fit // whole * whole if fit >= whole else fit


def _upstream(head: Head, grad: torch.Tensor) -> torch.Tensor:
    return grad.to(sum_dtype(head.operands)).masked_fill(head.targets == -100, 0.0)


class _Factors(NamedTuple):
    """What the unit gradient is multiplied by, as operands, and the factor that float16's range has no room for."""

    hidden: torch.Tensor | None
    """(N, D) upstream gradient times hidden states."""
    grad: torch.Tensor
    """(N, 1) upstream gradient."""
    largest: torch.Tensor | None


def _factors(block: Head, grad: torch.Tensor, *, weight: bool) -> _Factors:
    grad, largest = in_range(grad, block.operands)
    hidden = (block.hidden * grad[:, None]).to(block.operands) if weight else None
    return _Factors(hidden, grad[:, None].to(block.operands), largest)


def _write_sums(
    dw: torch.Tensor | None,
    db: torch.Tensor | None,
    columns: slice,
    unit: torch.Tensor,
    factors: _Factors,
    *,
    accumulate: bool,
) -> None:
    """Columns of dW and of d bias, from their unit gradient (N, columns)."""
    if dw is not None and factors.hidden is not None:
        write_product(dw[columns], unit.T, factors.hidden, factors.largest, accumulate=accumulate)
    if db is not None:
        write_product(db[columns, None], unit.T, factors.grad, factors.largest, accumulate=accumulate)


def _pass_positions(head: Head, *, stats: bool) -> int:
    splits = -(-head.weight.shape[0] // head.chosen().split_columns)
    itemsize = sum_dtype(head.operands).itemsize
    return max(1024, PARTIAL_BYTES // (splits * itemsize * (4 if stats else 2)) // 1024 * 1024)


def _chunk_columns(block: Head) -> int:
    fit, unit = CHUNK_BYTES // (block.operands.itemsize * max(1, block.hidden.shape[0])), block.chosen().split_columns
    return max(1, fit // unit) * unit
