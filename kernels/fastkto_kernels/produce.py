"""Logits by the plan's route, used up on the spot: into partials and kept exponentials, or the unit gradient."""

from collections.abc import Iterator

import torch

from .combine import Kept, Outputs, Partials, combine
from .fold import fold, fold_gradient
from .fused import fused_forward
from .gradient import fused_gradient
from .inputs import Head, slabs, slices
from .matmul import matmul_into, sum_dtype
from .table import Plan


def score(block: Head, outputs: Outputs, kept: Kept | None) -> None:
    """Partials by the plan's route, slab by slab, then their reduction; `block` comes from `Head.rows`."""
    plan, positions, vocabulary = block.chosen(), block.hidden.shape[0], block.weight.shape[0]
    dtype, stats = sum_dtype(block.operands), outputs.entropy is not None
    partials = Partials.empty(-(-vocabulary // plan.split_columns), positions, block.hidden, dtype, stats=stats)
    for first, slab, bias in slabs(block, plan.split_columns):
        if plan.route == "fused":
            part = partials.part(first // plan.split_columns, slice(None))
            fused_forward(
                block.hidden,
                slab,
                block.targets,
                bias,
                first,
                part,
                kept,
                scale=block.scale,
                softcap=block.softcap,
                plan=plan,
            )
            continue
        for rows, begin, tile in _folded_tiles(block, slab, plan):
            column = first + begin
            kept_here = None
            if kept is not None:
                anchors = kept.anchors[column // plan.fold_columns, rows]
                kept_here = Kept(kept.values[rows, column:], anchors)
            part = partials.part(column // plan.fold_columns, rows)
            tile_bias = None if bias is None else bias[begin : begin + tile.shape[1]]
            fold(
                tile, block.targets[rows], tile_bias, column, part, kept_here, scale=block.scale, softcap=block.softcap
            )
    combine(partials, block.targets, outputs, vocabulary)


def unit_gradient(
    head: Head, slab: torch.Tensor, bias: torch.Tensor | None, first: int, lse: torch.Tensor, unit: torch.Tensor
) -> None:
    """Recompute the columns of `slab`, which start at `first`, and write their unit gradient."""
    plan = head.chosen()
    if plan.route == "fused":
        fused_gradient(
            head.hidden,
            slab,
            head.targets,
            bias,
            first,
            lse,
            unit,
            scale=head.scale,
            softcap=head.softcap,
            plan=plan,
        )
        return
    for rows, begin, tile in _folded_tiles(head, slab, plan):
        columns = slice(begin, begin + tile.shape[1])
        tile_bias = None if bias is None else bias[columns]
        fold_gradient(
            tile,
            head.targets[rows],
            tile_bias,
            first + begin,
            lse[rows],
            unit[rows, columns],
            scale=head.scale,
            softcap=head.softcap,
        )


def empty_kept(block: Head) -> Kept:
    """Memory for a block's exponentials; rows are padded to 16 bytes, so that GEMMs read aligned."""
    plan, (positions, vocabulary) = block.chosen(), (block.hidden.shape[0], block.weight.shape[0])
    pad = 16 // block.operands.itemsize
    values = block.hidden.new_empty(positions, -(-vocabulary // pad) * pad, dtype=block.operands)
    tiles = -(-vocabulary // (4 * plan.anchor_columns)) * 4  # an epilogue takes its tile in quarters
    anchors = block.hidden.new_empty(tiles, positions, dtype=sum_dtype(block.operands))
    return Kept(values[:, :vocabulary], anchors)


def _folded_tiles(block: Head, slab: torch.Tensor, plan: Plan) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """(rows, first column in the slab, tile). Always `fold_rows` rows, so that cuBLAS takes one algorithm."""
    scratch = block.hidden.new_empty(plan.fold_rows * plan.fold_columns, dtype=sum_dtype(block.operands))
    for rows in slices(block.hidden.shape[0], plan.fold_rows):
        hidden = block.hidden[rows]
        if hidden.shape[0] < plan.fold_rows:
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, plan.fold_rows - hidden.shape[0]))
        for columns in slices(slab.shape[0], plan.fold_columns):
            width = columns.stop - columns.start
            tile = scratch[: plan.fold_rows * width].view(plan.fold_rows, width)
            matmul_into(tile, hidden, slab[columns].T, accumulate=False)
            yield rows, columns.start, tile
