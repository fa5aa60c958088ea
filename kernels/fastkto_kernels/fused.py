# mypy: allow-untyped-defs, allow-incomplete-defs
"""Fused route: GEMM, bias, scale, softcap, online logsumexp and target gather in one kernel; O(N) numbers out.

Replaces `z = softcap(scale * (hidden @ weight.T + bias))` followed by the pieces of `z.logsumexp(1)` and
`z.gather(1, targets)`: one partial for every vocabulary split, combined in a fixed order by `combine.py`.
"""

import torch
import triton
import triton.language as tl

from .combine import Kept, Partials
from .launch import INTERPRETING, descriptor_ready, launch, processors
from .pieces import above_minus_infinity, finish_logits, grouped, matrix, product, quarters, slope
from .table import Plan


@triton.jit
def fold_part(
    state,
    z,
    bias,
    target,
    rows,
    part,
    kept,
    anchors,
    N,
    V,
    kept_stride,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """Take WIDTH columns of logits into the running (maximum, sum of exp, sum of exp * gap, sum, target's logit)."""
    highest, exponentials, products, logits, at_target = state
    columns = (part * WIDTH + tl.arange(0, WIDTH))[None, :]
    inside = columns < V
    z = tl.where(inside, finish_logits(z, bias, columns, V, SCALE, SOFTCAP), float("-inf"))
    at_target += tl.sum(tl.where(columns == target[:, None], z, 0.0), axis=1)
    grown = tl.maximum(highest, tl.max(z, axis=1))
    anchor = above_minus_infinity(grown)
    shrink = tl.exp(highest - anchor)
    e = tl.exp(z - anchor[:, None])
    if STATISTICS:
        sunk = tl.where(exponentials > 0, exponentials * (highest - anchor), 0.0)
        below = tl.where(e > 0, e * (z - anchor[:, None]), 0.0)
        products = (products + sunk) * shrink + tl.sum(below, axis=1)
        logits += tl.sum(tl.where(inside, z, 0.0), axis=1)
    if kept is not None:
        here = rows < N
        tl.store(anchors + tl.cast(part, tl.int64) * N + rows, grown, mask=here)
        place = kept + rows.to(tl.int64)[:, None] * kept_stride + columns
        scaled = e * slope(z, SCALE, SOFTCAP)
        tl.store(place, scaled.to(kept.dtype.element_ty), mask=here[:, None] & inside)
    exponentials = exponentials * shrink + tl.sum(e, axis=1)
    return grown, exponentials, products, logits, at_target


@triton.jit(do_not_specialize=["N", "first_column"], do_not_specialize_on_alignment=["targets", "picked"])
def forward_kernel(
    hidden,
    weight,
    bias,
    targets,
    peak,
    total,
    weighted,
    plain,
    picked,
    kept,
    anchors,
    N,
    V,
    D,
    hidden_stride,
    weight_stride,
    kept_stride,
    first_column,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A unit of work is a row tile and a split of SPLIT vocabulary tiles; `weighted` and `kept` may be None.

    `kept` takes `exp(z - anchor) * slope` in the operands' dtype, with one `anchors` entry a row and tile.
    """
    row_tiles, tiles = tl.cdiv(N, ROWS), tl.cdiv(V, COLUMNS)
    splits = tl.cdiv(tiles, SPLIT)
    hidden_tiles = matrix(hidden, N, D, hidden_stride, ROWS, DEPTH, DESCRIPTORS)
    weight_tiles = matrix(weight, V, D, weight_stride, COLUMNS, DEPTH, DESCRIPTORS)
    for unit in range(tl.program_id(0), row_tiles * splits, tl.num_programs(0)):
        row_tile, split = grouped(unit, row_tiles, splits, GROUP)
        rows = row_tile * ROWS + tl.arange(0, ROWS)
        here = rows < N
        target = (tl.load(targets + rows, mask=here, other=-1) - first_column).to(tl.int32)
        zeros = tl.zeros((ROWS,), tl.float32)
        state = zeros + float("-inf"), zeros, zeros, zeros, zeros
        last = tl.minimum(split * SPLIT + SPLIT, tiles)
        for tile in range(split * SPLIT, last):
            z = product(
                hidden_tiles,
                weight_tiles,
                row_tile * ROWS,
                tile * COLUMNS,
                N,
                V,
                D,
                hidden_stride,
                weight_stride,
                ROWS,
                COLUMNS,
                DEPTH,
                DESCRIPTORS,
                WIDEN,
            )
            parts = quarters(z)
            for part in tl.static_range(4):
                state = fold_part(
                    state,
                    parts[part],
                    bias,
                    target,
                    rows,
                    4 * tile + part,
                    kept,
                    anchors,
                    N,
                    V,
                    kept_stride,
                    SCALE,
                    SOFTCAP,
                    COLUMNS // 4,
                    weighted is not None,
                )
        highest, exponentials, products, logits, at_target = state
        place = tl.cast(split, tl.int64) * N + rows
        tl.store(peak + place, highest, mask=here)
        tl.store(total + place, exponentials, mask=here)
        if weighted is not None:
            tl.store(weighted + place, products, mask=here)
            tl.store(plain + place, logits, mask=here)
        # one split at most holds a row's target, so each entry is written once
        hit = (target >= split * SPLIT * COLUMNS) & (target < tl.minimum(last * COLUMNS, V))
        tl.store(picked + rows, at_target, mask=here & hit)


def fused_forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    first_column: int,
    partials: Partials,
    kept: Kept | None,
    *,
    scale: float,
    softcap: float | None,
    plan: Plan,
) -> None:
    """Fill the partials (and `kept`) of one slab: `weight` (and `bias`) start at column `first_column`."""
    tile, positions = plan.tile, hidden.shape[0]
    units = triton.cdiv(positions, tile.rows) * triton.cdiv(weight.shape[0], plan.split_columns)
    launch(
        forward_kernel,
        min(units, processors(hidden.device) * tile.programs),
        hidden.device,
        hidden,
        weight,
        bias,
        targets,
        partials.peak,
        partials.total,
        partials.weighted,
        partials.plain,
        partials.picked,
        None if kept is None else kept.values[:, first_column:],
        None if kept is None else kept.anchors[first_column // plan.anchor_columns :],
        positions,
        weight.shape[0],
        weight.shape[1],
        hidden.stride(0),
        weight.stride(0),
        0 if kept is None else kept.values.stride(0),
        first_column,
        SCALE=scale,
        SOFTCAP=softcap,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        SPLIT=plan.split_tiles,
        GROUP=plan.group,
        DESCRIPTORS=plan.descriptors and descriptor_ready(hidden) and descriptor_ready(weight),
        WIDEN=INTERPRETING,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
