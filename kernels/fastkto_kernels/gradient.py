# mypy: allow-untyped-defs, allow-incomplete-defs
"""The unit gradient U = d logp / d (hidden W^T + bias) = slope * (onehot(target) - softmax), (N, V) in tiles.

With g the gradient of each log-prob: dX = g * (U W), dW = U^T (g * hidden), d bias = U^T g. Leaving g out of U keeps
its entries in [-1, 1] times the slope, so that float16 does not underflow, and lets U be formed before g is known.
"""

import torch
import triton
import triton.language as tl

from .combine import Kept, Outputs
from .launch import INTERPRETING, descriptor_ready, launch, processors
from .pieces import finish_logits, grouped, matrix, product, quarters, slope
from .table import Plan


@triton.jit(do_not_specialize=["N"], do_not_specialize_on_alignment=["targets", "logps", "lse"])
def kept_gradient_kernel(
    kept,
    anchors,
    targets,
    logps,
    lse,
    N,
    V,
    kept_stride,
    blocks,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TILES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """In place, [TILES, WIDTH] of one row a program. The target's entry comes from its float32 log-prob."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    tiles = (tl.program_id(0) % blocks) * TILES + tl.arange(0, TILES)
    columns = tiles[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = columns < V
    log_sum = tl.load(lse + row)
    logp = tl.load(logps + row)
    target = tl.load(targets + row)
    anchor = tl.load(anchors + tiles.to(tl.int64) * N + row, mask=tiles * WIDTH < V, other=float("-inf"))
    place = kept + row * kept_stride + columns
    scaled = tl.load(place, mask=inside, other=0.0).to(lse.dtype.element_ty)
    at_target = (1.0 - tl.exp(logp)) * slope(logp + log_sum, SCALE, SOFTCAP)
    unit = tl.where(columns == target, at_target, -scaled * tl.exp(anchor - log_sum)[:, None])
    unit = tl.where(target == -100, 0.0, unit)
    tl.store(place, unit.to(kept.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "first_column"], do_not_specialize_on_alignment=["targets", "lse"])
def gradient_kernel(
    hidden,
    weight,
    bias,
    targets,
    lse,
    gradient,
    N,
    V,
    D,
    hidden_stride,
    weight_stride,
    gradient_stride,
    first_column,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Recompute: the forward's GEMM, bit for bit, with the unit gradient as its epilogue."""
    row_tiles, tiles = tl.cdiv(N, ROWS), tl.cdiv(V, COLUMNS)
    hidden_tiles = matrix(hidden, N, D, hidden_stride, ROWS, DEPTH, DESCRIPTORS)
    weight_tiles = matrix(weight, V, D, weight_stride, COLUMNS, DEPTH, DESCRIPTORS)
    for unit in range(tl.program_id(0), row_tiles * tiles, tl.num_programs(0)):
        row_tile, tile = grouped(unit, row_tiles, tiles, GROUP)
        rows = row_tile * ROWS + tl.arange(0, ROWS)
        here = rows < N
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
        target = tl.load(targets + rows, mask=here, other=-100)[:, None]
        wanted = (target - first_column).to(tl.int32)
        log_sum = tl.load(lse + rows, mask=here, other=0.0)[:, None]
        parts = quarters(z)
        for part in tl.static_range(4):
            columns = (tile * COLUMNS + part * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4))[None, :]
            z = finish_logits(parts[part], bias, columns, V, SCALE, SOFTCAP)
            hit = tl.where(columns == wanted, 1.0, 0.0)
            result = (hit - tl.exp(z - log_sum)) * slope(z, SCALE, SOFTCAP)
            result = tl.where(target == -100, 0.0, result)
            place = gradient + rows.to(tl.int64)[:, None] * gradient_stride + columns
            tl.store(place, result.to(gradient.dtype.element_ty), mask=here[:, None] & (columns < V))


def kept_gradient(
    kept: Kept,
    targets: torch.Tensor,
    outputs: Outputs,
    vocabulary: int,
    *,
    scale: float,
    softcap: float | None,
    plan: Plan,
) -> None:
    """Turn a block's kept exponentials into its unit gradient, in place."""
    width = plan.anchor_columns
    tiles = max(1, 2048 // width)
    blocks = triton.cdiv(vocabulary, tiles * width)
    launch(
        kept_gradient_kernel,
        targets.shape[0] * blocks,
        targets.device,
        kept.values,
        kept.anchors,
        targets,
        outputs.logps,
        outputs.lse,
        targets.shape[0],
        vocabulary,
        kept.values.stride(0),
        blocks,
        SCALE=scale,
        SOFTCAP=softcap,
        TILES=tiles,
        WIDTH=width,
        num_warps=4,
    )


def fused_gradient(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    first_column: int,
    lse: torch.Tensor,
    gradient: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
    plan: Plan,
) -> None:
    """Write the unit gradient for the columns of `weight`, which start at `first_column`, to `gradient`."""
    tile, positions = plan.tile, hidden.shape[0]
    units = triton.cdiv(positions, tile.rows) * triton.cdiv(weight.shape[0], tile.columns)
    launch(
        gradient_kernel,
        min(units, processors(hidden.device) * tile.programs),
        hidden.device,
        hidden,
        weight,
        bias,
        targets,
        lse,
        gradient,
        positions,
        weight.shape[0],
        weight.shape[1],
        hidden.stride(0),
        weight.stride(0),
        gradient.stride(0),
        first_column,
        SCALE=scale,
        SOFTCAP=softcap,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        GROUP=plan.group,
        DESCRIPTORS=plan.descriptors and descriptor_ready(hidden) and descriptor_ready(weight),
        WIDEN=INTERPRETING,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
