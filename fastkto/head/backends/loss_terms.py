"""The KTO loss behind the head, on each side of the cross-rank reduction of z0. Legend: N scored positions, B rows.

A backend inherits these; the Triton backend has one kernel for each.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from fastkto.losses.kto import (
    LossSettings,
    clamped_mean,
    class_sums,
    logp_gradients,
    row_weights,
    sum_and_count,
    utilities,
)


class RowSums(NamedTuple):
    """What is known before z0."""

    logps_B: torch.Tensor
    """Summed log-probs, nats."""
    log_ratios_B: torch.Tensor
    """`logps - ref_logps`, eqs. (2) and (3)."""
    sum_and_count: torch.Tensor
    """(2,) sum of the log-ratios and B: of the mismatched pairs, this is what ranks add up for z0."""


class Terms(NamedTuple):
    """What follows from z0."""

    loss: torch.Tensor
    """Scalar, these rows' part of eq. (6)."""
    z0: torch.Tensor
    """Scalar, eq. (4)."""
    rewards_B: torch.Tensor
    utilities_B: torch.Tensor
    coefficients_B: torch.Tensor
    """d loss / d logp, eq. (7)."""
    class_sums: torch.Tensor
    """(6,) `fastkto.losses.kto.class_sums`."""


class TorchTerms:
    """In PyTorch, on any device."""

    def row_sums(self, logps_N: torch.Tensor, cu_seqlens: Sequence[int], ref_logps_B: torch.Tensor | None) -> RowSums:
        """`segment_sums(logps, cu_seqlens)` and its difference to the reference's (None: 0)."""
        return plain_row_sums(segment_sums(logps_N, cu_seqlens), ref_logps_B)

    def terms(
        self,
        rows: RowSums,
        labels_B: torch.Tensor,
        kl_sum_and_count: torch.Tensor | None,
        loss: LossSettings,
        num_rows: float | torch.Tensor,
        weights_B: torch.Tensor | None = None,
    ) -> Terms:
        """Eqs. (4) to (7); z0 is 0 without `kl_sum_and_count`, and w is 1 without weights."""
        logps_B, log_ratios_B, _ = rows
        z0 = log_ratios_B.new_zeros(()) if kl_sum_and_count is None else clamped_mean(kl_sum_and_count)
        weights_B = row_weights(
            labels_B,
            weights_B,
            desirable_weight=loss.desirable_weight,
            undesirable_weight=loss.undesirable_weight,
            dtype=logps_B.dtype,
        )
        u_B = utilities(log_ratios_B, labels_B, z0, beta=loss.beta, loss_type=loss.loss_type)
        rewards_B = loss.beta * log_ratios_B
        return Terms(
            (weights_B * torch.sigmoid(-u_B)).sum() / num_rows,
            z0,
            rewards_B,
            u_B,
            logp_gradients(u_B, labels_B, weights_B, beta=loss.beta, num_rows=num_rows),
            class_sums(labels_B, rewards_B, logps_B),
        )


def plain_row_sums(logps_B: torch.Tensor, ref_logps_B: torch.Tensor | None) -> RowSums:
    """The rest of `RowSums` from its first entry."""
    log_ratios_B = logps_B if ref_logps_B is None else logps_B - ref_logps_B.detach().to(logps_B.dtype)
    return RowSums(logps_B, log_ratios_B, sum_and_count(log_ratios_B))


def segment_sums(x_N: torch.Tensor, cu_seqlens: Sequence[int]) -> torch.Tensor:
    """`stack([x[a:b].sum() for a, b in pairs(cu_seqlens)])` (B,), with `cu_seqlens` counted from its first entry."""
    sizes = [end - start for start, end in pairwise(cu_seqlens)]
    return torch.stack([part.sum() for part in x_N.split(sizes)])
