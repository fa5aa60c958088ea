"""The head on a CPU: a cache-sized tile of products on each thread, and the C++ passes of `csrc/` while it is hot.

The products are `csrc/`'s own: a position's log-prob and gradient have the same bits whatever is beside it, on any
number of threads and whichever BLAS torch has. Only the columns of a tile and of a group enter the order of their
sums, and these depend on the machine's caches, D, V and the dtype.

Scratch is at most 64 MiB whatever N and V, and 1.2 MiB that each thread keeps; beside it only 16-bit inputs need more,
the float32 sums behind dX and, in `forward_backward`, dW. `forward_backward` with W trained keeps the logits of one
block of rows, `block_bytes`.
float64, which serves checks, is the tiles backend's: `choose` sees to that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastkto.head.backends.base import Coefficients, HeadGradients, HeadInputs, HeadOutputs, Wanted
from fastkto.head.backends.blocks import all_rows, largest_block, most_positions, row_blocks
from fastkto.head.backends.loss_terms import RowSums, TorchTerms, plain_row_sums
from fastkto.head.backends.native_ops import (
    Columns,
    Statistics,
    add_product,
    fold,
    gradient,
    groups,
    matrix,
    widened,
)
from fastkto.head.backends.products import cast, logit_slope, operand
from fastkto.head.backends.tiles import concatenate, wider_sums
from fastkto.native.loader import cache_bytes, load

MIB = 1 << 20
COLUMNS = 512  # of a tile, the most that csrc takes
DEPTH = 256  # of a product's partial sums: groups are multiples, so that their size does not enter dX


class Tiling(NamedTuple):
    """The pieces a head call is cut into."""

    rows: int
    columns: int
    group: int
    """Columns whose logits are kept at once, between the fold and the GEMMs of the gradient."""
    span: int
    """Columns whose weights are taken at once where no logits are kept."""


class NativeBackend(TorchTerms):
    """C++ on tiles, for CPUs."""

    name = "native"
    block_bytes = 256 << 20  # of logits that `forward_backward` keeps for one block of whole rows

    def unavailable(self, device: torch.device) -> str | None:
        """Not a CPU, or why the library is not there."""
        return f"it serves CPUs, not {device.type}" if device.type != "cpu" else load()

    def row_sums(self, logps_N: torch.Tensor, cu_seqlens: Sequence[int], ref_logps_B: torch.Tensor | None) -> RowSums:
        """Added up in double."""
        sums_B = torch.ops.fastkto_native.row_sums(logps_N, torch.tensor(cu_seqlens))
        return plain_row_sums(sums_B, ref_logps_B)

    def tiling(self, head: HeadInputs) -> Tiling:
        """A group of tiles fills half of this machine's third-level cache; the threads enter `span` alone."""
        vocabulary, depth = head.weight_VD.shape
        rows, columns, span = min(1024, max(128, 8 * MIB // (4 * depth))), COLUMNS, max(64, 4 * torch.get_num_threads())
        group = min(16 * MIB, cache_bytes(3) // 2) // (4 * rows * columns)
        if widened(head):
            columns = min(columns, max(DEPTH, 16 * MIB // (4 * depth) // DEPTH * DEPTH))
            group, span = (min(tiles, 16 * MIB // (4 * depth * columns)) for tiles in (group, span))
        return Tiling(rows, columns, *(min(vocabulary, max(1, tiles) * columns) for tiles in (group, span)))

    def forward(self, head: HeadInputs, *, stats: bool, unit_dx: bool) -> HeadOutputs:
        """A GEMM and a pass for each tile; with `unit_dx` two of each, the sum rescaled as the maximum grows."""
        if not unit_dx:
            return self._forward(head, stats=stats)
        out, unit_ND = self._forward_with_unit_dx(head, stats=stats)
        return out._replace(unit_dx_ND=cast(unit_ND, head.hidden_ND))

    def backward(self, head: HeadInputs, lse_N: torch.Tensor, grad_N: torch.Tensor, wanted: Wanted) -> HeadGradients:
        """Recompute each tile, turn it into the gradient in place, two GEMMs into float32 sums."""
        dtype = head.weight_VD.dtype if wanted.weight else torch.float32
        sums = GradientSums.new(head, wanted, weight_dtype=dtype)
        self._accumulate(head, lse_N, grad_N.float().masked_fill(head.ignored_N, 0.0), sums)
        return sums.gradients(head)

    def forward_backward(
        self,
        head: HeadInputs,
        cu_seqlens: Sequence[int],
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        stats: bool,
    ) -> tuple[HeadOutputs, HeadGradients]:
        """W trained: blocks of whole rows keep their logits (6 NDV). W frozen: the unscaled dX, scaled (4 NDV)."""
        if not (wanted.weight or wanted.bias):
            out, unit_ND = self._forward_with_unit_dx(head, stats=stats)
            grad_N = all_rows(cu_seqlens).upstream(coefficients, out.logps_N, head)
            return out, HeadGradients(cast(unit_ND.mul_(grad_N[:, None]), head.hidden_ND), None, None)
        sums, outputs = GradientSums.new(head, wanted, weight_dtype=torch.float32), []
        most = self._most_positions(head)
        buffer = torch.empty(largest_block(cu_seqlens, most) * head.weight_VD.shape[0])
        for rows in row_blocks(cu_seqlens, most):
            block, kept = head.rows(rows.positions), buffer if rows.fits else None
            out = self._forward(block, stats=stats, kept=kept)
            grad_N = rows.upstream(coefficients, out.logps_N, block)
            first = rows.positions.start == 0
            self._accumulate(block, out.lse_N, grad_N, sums.rows(rows.positions), kept=kept, fresh=first)
            outputs.append(out)
        return concatenate(outputs, head, stats=stats), sums.gradients(head)

    def scratch_bytes(self, head: HeadInputs, wanted: Wanted, cu_seqlens: Sequence[int] | None) -> int:
        """A group of tiles, or the logits of the largest block of rows."""
        tiling = self.tiling(head)
        rows = largest(positions(head, tiling.rows))
        floats = rows * tiling.group
        if not any(wanted):
            floats = 0
        elif wanted.weight and cu_seqlens is not None:
            floats = max(floats, largest_block(cu_seqlens, self._most_positions(head)) * head.weight_VD.shape[0])
        return 4 * floats + wider_sums(head, wanted, 4)

    def _most_positions(self, head: HeadInputs) -> int:
        return min(most_positions(self.block_bytes, head, torch.float32), 4 * self.tiling(head).rows)

    def _forward(self, head: HeadInputs, *, stats: bool, kept: torch.Tensor | None = None) -> HeadOutputs:
        """With `kept`, the bare products stay there: one group of columns behind the other."""
        tiling, statistics = self.tiling(head), Statistics(head.hidden_ND.shape[0])
        parts = positions(head, tiling.rows if kept is None else None)
        for columns in groups(head, tiling.span if kept is None else tiling.group):
            for part in parts:
                logits = None if kept is None else matrix(kept, size_of(part), columns, columns.start)
                fold(head, part, columns, tiling.columns, statistics, logits, stats=stats)
        return statistics.finish(head, stats=stats)

    def _forward_with_unit_dx(self, head: HeadInputs, *, stats: bool) -> tuple[HeadOutputs, torch.Tensor]:
        """d logp / d hidden = slope[y] W[y] - (sum_v exp(z_v - max) slope[v] W[v]) / sum, in float32."""
        tiling, statistics = self.tiling(head), Statistics(head.hidden_ND.shape[0])
        parts = positions(head, tiling.rows)
        unit_ND = torch.empty(head.hidden_ND.shape)
        buffer = torch.empty(largest(parts) * tiling.group)
        for columns in groups(head, tiling.group):
            for part in parts:
                before, after = statistics.max_N[part].clone(), statistics.max_N[part]
                logits = matrix(buffer, size_of(part), columns)
                fold(head, part, columns, tiling.columns, statistics, logits, stats=stats)
                if columns.start > 0 and not torch.equal(before, after):
                    unit_ND[part] *= torch.where(before == after, 1.0, (before - after).exp()).float()[:, None]
                anchor = after.masked_fill(after == -torch.inf, 0.0).float()
                none, minus = torch.full_like(head.targets_N[part], -1), torch.full_like(anchor, -1.0)
                products = head.hidden_ND[part], columns, tiling.columns
                gradient(head, none, *products, anchor, minus, logits, recompute=False)
                add_product(unit_ND[part], logits, columns.weight_CD, fresh=columns.start == 0)
        for part in parts:
            ignored = head.ignored_N[part]
            slope = logit_slope(statistics.target_N[part].float()[:, None], head)
            own = operand(head.weight_VD[head.targets_N[part].clamp(min=0)], head).mul(slope)
            sums = statistics.sum_N[part].float()[:, None]
            unit_ND[part].div_(sums).neg_().add_(own).masked_fill_(ignored[:, None], 0.0)
        return statistics.finish(head, stats=stats), unit_ND

    def _accumulate(
        self,
        head: HeadInputs,
        lse_N: torch.Tensor,
        grad_N: torch.Tensor,
        sums: "GradientSums",
        *,
        kept: torch.Tensor | None = None,
        fresh: bool = True,
    ) -> None:
        """Gradients of `(grad * logps).sum()` into dX, and into dW and db, which are added to unless `fresh`."""
        tiling = self.tiling(head)
        parts = positions(head, tiling.rows if kept is None else None)
        buffer = torch.empty(largest(parts) * tiling.group) if kept is None else kept
        for columns in groups(head, tiling.group):
            dw, db = sums.columns(columns)
            dw_sum = dw if dw is None or dw.dtype == torch.float32 else torch.empty(dw.shape)
            for part in parts:
                hidden, first = operand(head.hidden_ND[part], head), fresh and part.start == 0
                logits = matrix(buffer, size_of(part), columns, 0 if kept is None else columns.start)
                given = head.targets_N[part], hidden, columns, tiling.columns, lse_N[part], grad_N[part]
                gradient(head, *given, logits, recompute=kept is None)
                if sums.dx_ND is not None:
                    add_product(sums.dx_ND[part], logits, columns.weight_CD, fresh=columns.start == 0)
                if dw_sum is not None:
                    add_product(dw_sum, logits.T, hidden, fresh=first)
                if db is not None:
                    db.copy_(logits.sum(0) if first else db + logits.sum(0))
            if dw is not None and dw_sum is not None and dw_sum is not dw:
                dw.copy_(dw_sum)


class GradientSums(NamedTuple):
    """Gradient sums in float32, uninitialised: the first product overwrites. dW may be narrower, written once."""

    dx_ND: torch.Tensor | None
    dw_VD: torch.Tensor | None
    db_V: torch.Tensor | None

    @classmethod
    def new(cls, head: HeadInputs, wanted: Wanted, *, weight_dtype: torch.dtype) -> "GradientSums":
        """Room for what is wanted; zeros where no position will write."""
        new = torch.empty if head.hidden_ND.shape[0] else torch.zeros
        return cls(
            new(head.hidden_ND.shape) if wanted.hidden else None,
            new(head.weight_VD.shape, dtype=weight_dtype) if wanted.weight else None,
            new(head.weight_VD.shape[0]) if wanted.bias and head.bias_V is not None else None,
        )

    def rows(self, part: slice) -> "GradientSums":
        """The same sums for some of the positions."""
        return self if self.dx_ND is None else self._replace(dx_ND=self.dx_ND[part])

    def columns(self, columns: Columns) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """dW and db of a slice of the vocabulary."""
        part = slice(columns.start, columns.start + columns.weight_CD.shape[0])
        return (None if self.dw_VD is None else self.dw_VD[part]), (None if self.db_V is None else self.db_V[part])

    def gradients(self, head: HeadInputs) -> HeadGradients:
        """In the inputs' dtypes."""
        inputs = (head.hidden_ND, head.weight_VD, head.bias_V)
        return HeadGradients(*(cast(total, like) for total, like in zip(self, inputs, strict=True)))


def positions(head: HeadInputs, most: int | None) -> list[slice]:
    """The positions in equal parts of at most `most`."""
    count = head.hidden_ND.shape[0]
    parts = 1 if most is None else -(-count // most)
    size = -(-count // max(1, parts))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(1, size))]


def size_of(part: slice) -> int:
    """Positions in a part."""
    return part.stop - part.start


def largest(parts: list[slice]) -> int:
    """Positions of the largest part."""
    return max((size_of(part) for part in parts), default=0)
