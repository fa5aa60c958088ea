"""The head in tiles of plain torch: any device, no compiler. `torch.mm` into a tile, fold, forget.

Loops run over the vocabulary first, so each slice of the weight is cast once a pass and each slice of dW is
written once. Tile sizes are constants and every product has the same number of rows, so a position's log-prob and
gradient depend on (D, V, dtype) and that position alone, as far as torch's library gives equal rows of one shape
equal bits (tests ask it, at 1 to 16 threads).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastkto.head.backends.base import Coefficients, HeadGradients, HeadInputs, HeadOutputs, Wanted
from fastkto.head.backends.blocks import largest_block, most_positions, row_blocks
from fastkto.head.backends.loss_terms import TorchTerms
from fastkto.head.backends.products import (
    accumulate,
    cast,
    fixed_rows,
    logit_slope,
    logits_tile,
    operand,
    product,
    slice_sum,
)


@dataclass
class Folded:
    """Running statistics of the logits seen so far, all (N,)."""

    max_N: torch.Tensor
    sum_N: torch.Tensor
    target_N: torch.Tensor
    weighted_N: torch.Tensor | None  # sum of exp(z - max) * z
    total_N: torch.Tensor | None  # sum of z

    @classmethod
    def start(cls, head: HeadInputs, *, stats: bool) -> "Folded":
        """Nothing seen: a maximum of -inf, sums of 0."""
        zeros_N = head.hidden_ND.new_zeros(head.hidden_ND.shape[0], dtype=head.sum_dtype)
        return cls(
            torch.full_like(zeros_N, -torch.inf),
            zeros_N,
            zeros_N.clone(),
            zeros_N.clone() if stats else None,
            zeros_N.clone() if stats else None,
        )

    def finish(self, head: HeadInputs, unit_dx_ND: torch.Tensor | None) -> HeadOutputs:
        """Close the sums: logsumexp, log-probs, entropy, mean logit."""
        ignored_N = head.ignored_N
        lse_N = self.max_N + self.sum_N.log()
        logps_N = (self.target_N - lse_N).masked_fill(ignored_N, 0.0)
        if unit_dx_ND is not None:
            unit_dx_ND = unit_dx_ND.masked_fill(ignored_N[:, None], 0.0)
        if self.weighted_N is None or self.total_N is None:
            return HeadOutputs(logps_N, lse_N, None, None, unit_dx_ND)
        entropy_N = lse_N - self.weighted_N / self.sum_N
        return HeadOutputs(logps_N, lse_N, entropy_N, self.total_N / head.weight_VD.shape[0], unit_dx_ND)


class TileBackend(TorchTerms):
    """Pure torch. A subclass can take more from each tile of logits, in `fold`."""

    name = "tiles"
    columns = 8192
    block_bytes = 256 << 20  # of logits that `forward_backward` keeps for one block of whole rows

    def unavailable(self, device: torch.device) -> str | None:
        """Torch serves every device."""
        return None

    def forward(self, head: HeadInputs, *, stats: bool, unit_dx: bool) -> HeadOutputs:
        """One pass over the vocabulary; with `unit_dx` a second GEMM a tile, rescaled as the maximum grows."""
        folded = Folded.start(head, stats=stats)
        unit_ND = torch.zeros_like(head.hidden_ND, dtype=head.sum_dtype) if unit_dx else None
        for start, weight, bias in self._vocabulary(head):
            for part in self._positions(head):
                tile = logits_tile(operand(head.hidden_ND[part], head), weight, bias, head)
                before = folded.max_N[part].clone() if unit_dx else None
                self.fold(tile, head.targets_N[part], start, folded, part)
                if unit_ND is not None and before is not None:
                    unit_ND[part] *= (before - folded.max_N[part]).exp()[:, None]
                    slope = logit_slope(tile, head)
                    weights = tile.sub_(folded.max_N[part][:, None]).exp_().mul_(slope)
                    unit_ND[part] -= product(weights.to(weight.dtype), weight)
        if unit_ND is not None:
            unit_ND /= folded.sum_N[:, None]
            safe_N = head.targets_N.clamp(min=0)
            slope_N1 = logit_slope(folded.target_N[:, None], head)
            unit_ND += slope_N1 * operand(head.weight_VD[safe_N], head)
            unit_ND = unit_ND.to(head.hidden_ND.dtype)
        return folded.finish(head, unit_ND)

    def backward(self, head: HeadInputs, lse_N: torch.Tensor, grad_N: torch.Tensor, wanted: Wanted) -> HeadGradients:
        """Recompute each tile, turn it into d logits, two GEMMs into sums of `sum_dtype`."""
        grad_N = grad_N.to(head.sum_dtype).masked_fill(head.ignored_N, 0.0)
        dx_ND = torch.zeros_like(head.hidden_ND, dtype=head.sum_dtype) if wanted.hidden else None
        dw_VD = torch.empty_like(head.weight_VD) if wanted.weight else None
        db_V = torch.empty_like(head.bias_V) if wanted.bias and head.bias_V is not None else None
        for start, weight, bias in self._vocabulary(head):
            end = start + weight.shape[0]
            dw, db = slice_sum(dw_VD, start, end, head), slice_sum(db_V, start, end, head)
            for part in self._positions(head):
                hidden = operand(head.hidden_ND[part], head)
                tile = logits_tile(hidden, weight, bias, head)
                self.to_gradient(tile, lse_N[part], grad_N[part], head.targets_N[part], start, head)
                accumulate(tile, hidden, weight, None if dx_ND is None else dx_ND[part], dw, db)
            if dw_VD is not None and dw is not None:
                dw_VD[start:end] = dw
            if db_V is not None and db is not None:
                db_V[start:end] = db
        return HeadGradients(cast(dx_ND, head.hidden_ND), dw_VD, db_V)

    def forward_backward(
        self,
        head: HeadInputs,
        cu_seqlens: Sequence[int],
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        stats: bool,
    ) -> tuple[HeadOutputs, HeadGradients]:
        """Blocks of whole rows: logits (6 NDV in all) stay until the block's gradient is formed in place.

        A row too long for `block_bytes` recomputes its logits instead (8 NDV).
        """
        dx_ND, dw_VD, db_V = (
            torch.zeros_like(x, dtype=head.sum_dtype) if want and x is not None else None
            for want, x in zip(wanted, (head.hidden_ND, head.weight_VD, head.bias_V), strict=True)
        )
        outputs: list[HeadOutputs] = []
        for rows in row_blocks(cu_seqlens, most_positions(self.block_bytes, head, head.sum_dtype)):
            begin, block = rows.positions.start, head.rows(rows.positions)
            out, kept = self._forward_keeping(block, stats=stats, keep=rows.fits)
            outputs.append(out)
            grad_N = rows.upstream(coefficients, out.logps_N, block)
            for start, weight, bias in self._vocabulary(block):
                dw = None if dw_VD is None else dw_VD[start : start + weight.shape[0]]
                db = None if db_V is None else db_V[start : start + weight.shape[0]]
                for part in self._positions(block):
                    hidden = operand(block.hidden_ND[part], head)
                    tile = kept.pop((start, part.start), None)
                    if tile is None:
                        tile = logits_tile(hidden, weight, bias, head)
                    self.to_gradient(tile, out.lse_N[part], grad_N[part], block.targets_N[part], start, head)
                    dx = None if dx_ND is None else dx_ND[begin + part.start : begin + part.stop]
                    accumulate(tile, hidden, weight, dx, dw, db)
        gradients = HeadGradients(cast(dx_ND, head.hidden_ND), cast(dw_VD, head.weight_VD), cast(db_V, head.bias_V))
        return concatenate(outputs, head, stats=stats), gradients

    def scratch_bytes(self, head: HeadInputs, wanted: Wanted, cu_seqlens: Sequence[int] | None) -> int:
        """A tile with what the passes over it make, the logits of the largest block, sums wider than their result."""
        itemsize = torch.finfo(head.sum_dtype).bits // 8
        rows, vocabulary = fixed_rows(head.hidden_ND.device), head.weight_VD.shape[0]
        tile = rows * min(vocabulary, self.columns)
        kept = 0
        if cu_seqlens is not None:
            most = most_positions(self.block_bytes, head, head.sum_dtype)
            kept = -(-largest_block(cu_seqlens, most) // rows) * rows * vocabulary
        return itemsize * (3 * tile + kept) + wider_sums(head, wanted, itemsize)

    def fold(self, tile: torch.Tensor, targets: torch.Tensor, start: int, folded: Folded, part: slice) -> None:
        """Take a tile of logits, columns [start, start + width), into the running statistics of `part`."""
        maximum = torch.maximum(folded.max_N[part], tile.amax(1))
        shift = maximum.masked_fill(maximum == -torch.inf, 0.0)  # no finite logit yet: exp(-inf), not exp(-inf + inf)
        rescale = (folded.max_N[part] - shift).exp()
        exponentials = (tile - shift[:, None]).exp_()
        folded.sum_N[part] = folded.sum_N[part] * rescale + exponentials.sum(1)
        folded.max_N[part] = maximum
        here = (targets >= start) & (targets < start + tile.shape[1])
        picked = tile.gather(1, (targets - start).clamp(0, tile.shape[1] - 1)[:, None])[:, 0]
        folded.target_N[part] = torch.where(here, picked, folded.target_N[part])
        if folded.weighted_N is not None and folded.total_N is not None:
            folded.weighted_N[part] = folded.weighted_N[part] * rescale + exponentials.mul_(tile).sum(1)
            folded.total_N[part] += tile.sum(1)

    def to_gradient(
        self,
        tile: torch.Tensor,
        lse: torch.Tensor,
        grad: torch.Tensor,
        targets: torch.Tensor,
        start: int,
        head: HeadInputs,
    ) -> None:
        """Logits to d loss / d (hidden W^T + b), in place: `grad * (onehot(target) - softmax) * slope`."""
        slope = logit_slope(tile, head)
        tile.sub_(lse[:, None]).exp_().neg_()
        here = ((targets >= start) & (targets < start + tile.shape[1])).to(tile.dtype)
        tile.scatter_add_(1, (targets - start).clamp(0, tile.shape[1] - 1)[:, None], here[:, None])
        tile.mul_(grad[:, None]).mul_(slope)

    def _forward_keeping(
        self, head: HeadInputs, *, stats: bool, keep: bool
    ) -> tuple[HeadOutputs, dict[tuple[int, int], torch.Tensor]]:
        folded, kept = Folded.start(head, stats=stats), {}
        for start, weight, bias in self._vocabulary(head):
            for part in self._positions(head):
                tile = logits_tile(operand(head.hidden_ND[part], head), weight, bias, head)
                self.fold(tile, head.targets_N[part], start, folded, part)
                if keep:
                    kept[start, part.start] = tile
        return folded.finish(head, None), kept

    def _vocabulary(self, head: HeadInputs) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        for start in range(0, head.weight_VD.shape[0], self.columns):
            bias = None
            if head.bias_V is not None:
                bias = head.bias_V[start : start + self.columns].to(head.sum_dtype)
            yield start, operand(head.weight_VD[start : start + self.columns], head), bias

    def _positions(self, head: HeadInputs) -> Iterator[slice]:
        count, rows = head.hidden_ND.shape[0], fixed_rows(head.hidden_ND.device)
        for start in range(0, count, rows):
            yield slice(start, min(start + rows, count))


def wider_sums(head: HeadInputs, wanted: Wanted, itemsize: int) -> int:
    """Bytes of gradient sums that are kept beside a gradient of a narrower dtype."""
    pairs = ((wanted.hidden, head.hidden_ND), (wanted.weight, head.weight_VD))
    return sum(itemsize * x.numel() for wants, x in pairs if wants and x.element_size() < itemsize)


def concatenate(outputs: list[HeadOutputs], head: HeadInputs, *, stats: bool) -> HeadOutputs:
    """The blocks' outputs as one."""
    if not outputs:
        return Folded.start(head, stats=stats).finish(head, None)
    entropies = [out.entropy_N for out in outputs if out.entropy_N is not None]
    means = [out.mean_logits_N for out in outputs if out.mean_logits_N is not None]
    return HeadOutputs(
        torch.cat([out.logps_N for out in outputs]),
        torch.cat([out.lse_N for out in outputs]),
        torch.cat(entropies) if stats else None,
        torch.cat(means) if stats else None,
        None,
    )
