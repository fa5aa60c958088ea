"""The CUDA backend: the Triton kernels of `fastkto_kernels`. Legend: N scored positions, V vocabulary."""

import functools
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from fastkto.head.backends.base import Coefficients, HeadGradients, HeadInputs, HeadOutputs, Wanted
from fastkto.head.backends.blocks import largest_block, most_positions, row_blocks, spread
from fastkto.head.backends.loss_terms import RowSums, Terms
from fastkto.losses.kto import LossSettings


class TritonBackend:
    """A fused Triton GEMM, or a cuBLAS tile and one pass over it: the kernels' table chooses, by D and dtype alone."""

    name = "triton"
    block_bytes = 1 << 30
    """Of exponentials, in the GEMMs' dtype, that `forward_backward` keeps for one block of whole rows."""

    def unavailable(self, device: torch.device) -> str | None:
        """Needs Triton, and an NVIDIA GPU of compute capability 8.0 or up (or Triton's interpreter)."""
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if kernels().arch_of(device) is None:
            return f"it needs an NVIDIA GPU of compute capability 8.0 or up, not {device.type}"
        return None

    def forward(self, head: HeadInputs, *, stats: bool, unit_dx: bool) -> HeadOutputs:
        """2 NDV; with `unit_dx` 4 NDV."""
        out, unit_dx_ND = kernels().forward(_head(head), stats=stats, unit_dx=unit_dx)
        return HeadOutputs(out.logps, out.lse, out.entropy, out.mean_logits, unit_dx_ND)

    def backward(self, head: HeadInputs, lse_N: torch.Tensor, grad_N: torch.Tensor, wanted: Wanted) -> HeadGradients:
        """Recomputes, chunk by chunk of the vocabulary: 8 NDV with the forward, each slice of dW written once."""
        return HeadGradients(*kernels().backward(_head(head), lse_N, grad_N, **wanted._asdict()))

    def forward_backward(
        self,
        head: HeadInputs,
        cu_seqlens: Sequence[int],
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        stats: bool,
    ) -> tuple[HeadOutputs, HeadGradients]:
        """W frozen: 4 NDV. W trained: blocks of whole rows, 6 NDV; a row longer than a block recomputes, 8 NDV.

        More than one block adds dW up in float32: for a 16-bit weight, V x D x 4 bytes beside its gradient.
        """
        cu_seqlens = list(cu_seqlens)
        if not (wanted.weight or wanted.bias):
            return self._frozen(head, cu_seqlens, coefficients, stats=stats)
        blocks = row_blocks(cu_seqlens, most_positions(self.block_bytes, head, head.compute_dtype))
        one = len(blocks) == 1 and blocks[0].fits
        out = _empty_outputs(head, stats=stats)
        dx_ND = torch.empty_like(head.hidden_ND) if wanted.hidden else None
        dw_VD, db_V = (
            _gradient_memory(x if want else None, head, one=one)
            for want, x in ((wanted.weight, head.weight_VD), (wanted.bias, head.bias_V))
        )
        for rows in blocks:
            part, block = rows.positions, _head(head.rows(rows.positions))
            kept = None
            if rows.fits:
                found, kept = kernels().block_forward(block, stats=stats)
            else:
                found, _ = kernels().forward(block, stats=stats)
            for whole, piece in zip(out[:4], found, strict=True):
                if whole is not None:
                    whole[part] = piece
            grad_N = spread(coefficients(rows.rows, found.logps, rows.cu_seqlens), rows.cu_seqlens)
            dx = None if dx_ND is None else dx_ND[part]
            if kept is not None:
                kernels().block_backward(block, found, kept, grad_N, dx=dx, dw=dw_VD, db=db_V, accumulate=not one)
            else:
                kernels().backward_into(block, found.lse, grad_N, dx=dx, dw=dw_VD, db=db_V, accumulate=not one)
        weight_dtype = head.weight_VD.dtype
        dw_VD = None if dw_VD is None else dw_VD.to(weight_dtype)
        db_V = None if db_V is None or head.bias_V is None else db_V.to(head.bias_V.dtype)
        return out, HeadGradients(dx_ND, dw_VD, db_V)

    def scratch_bytes(self, head: HeadInputs, wanted: Wanted, cu_seqlens: Sequence[int] | None) -> int:
        """The kernels' budgets, and the exponentials of the largest block of rows."""
        positions, vocabulary = head.hidden_ND.shape[0], head.weight_VD.shape[0]
        logits = head.compute_dtype.itemsize * positions * vocabulary
        if not any(wanted):
            return min(logits, kernels().FORWARD_BYTES)
        if not wanted.weight or cu_seqlens is None:
            budget = kernels().CHUNK_BYTES if wanted.weight else kernels().FROZEN_BYTES
            return min(logits, budget) + kernels().FORWARD_BYTES
        most = most_positions(self.block_bytes, head, head.compute_dtype)
        kept = head.compute_dtype.itemsize * largest_block(cu_seqlens, most) * vocabulary
        wider = 4 * head.weight_VD.numel() if positions > most and head.weight_VD.element_size() < 4 else 0
        return kept + wider + kernels().FORWARD_BYTES

    def row_sums(self, logps_N: torch.Tensor, cu_seqlens: Sequence[int], ref_logps_B: torch.Tensor | None) -> RowSums:
        """One launch for all rows."""
        on_device = torch.tensor(cu_seqlens).sub_(cu_seqlens[0]).to(logps_N.device, non_blocking=True)
        ref_logps_B = logps_N.new_zeros(len(cu_seqlens) - 1) if ref_logps_B is None else ref_logps_B.to(logps_N.dtype)
        return RowSums(*kernels().row_sums(logps_N, on_device, ref_logps_B))

    def terms(
        self,
        rows: RowSums,
        labels_B: torch.Tensor,
        kl_sum_and_count: torch.Tensor | None,
        loss: LossSettings,
        num_rows: float | torch.Tensor,
        weights_B: torch.Tensor | None = None,
    ) -> Terms:
        """One launch."""
        if not isinstance(num_rows, torch.Tensor):
            num_rows = rows.logps_B.new_full((1,), num_rows)
        found = kernels().kto_terms(
            kernels().RowSums(*rows),
            labels_B,
            kl_sum_and_count,
            num_rows,
            None if weights_B is None else weights_B.contiguous(),
            beta=loss.beta,
            desirable_weight=loss.desirable_weight,
            undesirable_weight=loss.undesirable_weight,
        )
        return Terms(*found)

    def _frozen(
        self, head: HeadInputs, cu_seqlens: list[int], coefficients: Coefficients, *, stats: bool
    ) -> tuple[HeadOutputs, HeadGradients]:
        out = self.forward(head, stats=stats, unit_dx=True)
        grad_B = coefficients(slice(0, len(cu_seqlens) - 1), out.logps_N, cu_seqlens)
        assert out.unit_dx_ND is not None
        dx_ND = out.unit_dx_ND.mul_(spread(grad_B, cu_seqlens)[:, None])
        return out._replace(unit_dx_ND=None), HeadGradients(dx_ND, None, None)


@functools.cache
def kernels() -> ModuleType:
    """The kernel package, imported when a head is first run, because it imports Triton."""
    import fastkto_kernels

    return fastkto_kernels


def _head(head: HeadInputs) -> Any:
    tensors = head.hidden_ND, head.weight_VD, head.targets_N, head.bias_V
    return kernels().Head(*tensors, head.softcap, head.scale, head.compute_dtype)


def _gradient_memory(x: torch.Tensor | None, head: HeadInputs, *, one: bool) -> torch.Tensor | None:
    """Written once in the dtype of `x`, or added up from 0 in the sums' dtype."""
    if x is None:
        return None
    return torch.empty_like(x) if one else torch.zeros_like(x, dtype=head.sum_dtype)


def _empty_outputs(head: HeadInputs, *, stats: bool) -> HeadOutputs:
    empty_N = [head.hidden_ND.new_empty(head.hidden_ND.shape[0], dtype=head.sum_dtype) for _ in range(4)]
    return HeadOutputs(empty_N[0], empty_N[1], empty_N[2] if stats else None, empty_N[3] if stats else None, None)
