# mypy: allow-untyped-defs, allow-incomplete-defs
"""Fold route: one pass over a tile of `hidden @ weight.T` that cuBLAS wrote, while it is in L2.

The same partials as `fused.py` (a tile is a split of its own), or the same unit gradient as `gradient.py`.
"""

import torch
import triton
import triton.language as tl

from .combine import Kept, Partials
from .launch import launch
from .pieces import above_minus_infinity, finish_logits, slope


@triton.jit
def load_logits(tile, bias, row, columns, width, tile_stride, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """A row of the tile as finished logits; -inf from `width` on."""
    z = tl.load(tile + row * tile_stride + columns, mask=columns < width, other=0.0)
    return tl.where(columns < width, finish_logits(z, bias, columns, width, SCALE, SOFTCAP), float("-inf"))


@triton.jit(do_not_specialize=["first_column"], do_not_specialize_on_alignment=["targets", "picked", "peak"])
def fold_kernel(
    tile,
    bias,
    targets,
    peak,
    total,
    weighted,
    plain,
    picked,
    kept,
    anchors,
    width,
    tile_stride,
    kept_stride,
    first_column,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row; a row of the tile fits in its registers, so it is read once."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    z = load_logits(tile, bias, row, columns, width, tile_stride, SCALE, SOFTCAP)
    highest = tl.max(z, axis=0)
    gap = z - above_minus_infinity(highest)
    e = tl.exp(gap)
    tl.store(peak + row, highest)
    tl.store(total + row, tl.sum(e, axis=0))
    if weighted is not None:
        tl.store(weighted + row, tl.sum(tl.where(e > 0, e * gap, 0.0), axis=0))
        tl.store(plain + row, tl.sum(tl.where(inside, z, 0.0), axis=0))
    if kept is not None:
        tl.store(anchors + row, highest)
        scaled = e * slope(z, SCALE, SOFTCAP)
        tl.store(kept + row * kept_stride + columns, scaled.to(kept.dtype.element_ty), mask=inside)
    target = tl.load(targets + row) - first_column
    at_target = tl.sum(tl.where(columns == target, z, 0.0), axis=0)
    tl.store(picked + row, at_target, mask=(target >= 0) & (target < width))


@triton.jit(do_not_specialize=["first_column"], do_not_specialize_on_alignment=["targets", "lse"])
def fold_gradient_kernel(
    tile,
    bias,
    targets,
    lse,
    gradient,
    width,
    tile_stride,
    gradient_stride,
    first_column,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: `slope * (onehot(target) - exp(z - lse))`, 0 where the target is -100."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    z = load_logits(tile, bias, row, columns, width, tile_stride, SCALE, SOFTCAP)
    target = tl.load(targets + row)
    hit = tl.where(columns == target - first_column, 1.0, 0.0)
    unit = (hit - tl.exp(z - tl.load(lse + row))) * slope(z, SCALE, SOFTCAP)
    unit = tl.where(target == -100, 0.0, unit)
    tl.store(gradient + row * gradient_stride + columns, unit.to(gradient.dtype.element_ty), mask=columns < width)


def fold(
    tile: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    first_column: int,
    partials: Partials,
    kept: Kept | None,
    *,
    scale: float,
    softcap: float | None,
) -> None:
    """Fill the first split of `partials` (and `kept`) from the tile's first `len(targets)` rows."""
    launch(
        fold_kernel,
        targets.shape[0],
        tile.device,
        tile,
        bias,
        targets,
        partials.peak,
        partials.total,
        partials.weighted,
        partials.plain,
        partials.picked,
        None if kept is None else kept.values,
        None if kept is None else kept.anchors,
        tile.shape[1],
        tile.stride(0),
        0 if kept is None else kept.values.stride(0),
        first_column,
        SCALE=scale,
        SOFTCAP=softcap,
        **_row_options(tile.shape[1]),
    )


def fold_gradient(
    tile: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    first_column: int,
    lse: torch.Tensor,
    gradient: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> None:
    """Write the unit gradient of the tile's first `len(targets)` rows to `gradient`."""
    launch(
        fold_gradient_kernel,
        targets.shape[0],
        tile.device,
        tile,
        bias,
        targets,
        lse,
        gradient,
        tile.shape[1],
        tile.stride(0),
        gradient.stride(0),
        first_column,
        SCALE=scale,
        SOFTCAP=softcap,
        **_row_options(tile.shape[1]),
    )


def _row_options(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(8, max(1, block // 512))}
