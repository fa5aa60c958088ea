"""The KTO loss on log-probs: pure functions, one an equation. Legend: B rows.

Equation numbers are those of the contract in the README: Ethayarajh et al., "KTO: Model Alignment as Prospect
Theoretic Optimization" (arXiv 2402.01306), sections 3 and 4.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from fastkto.errors import InputError
from fastkto.losses.checks import check_loss_arguments, check_numbers, check_pairs, check_tensor, no_pairs, reduced

USES_KL = {"kto": True, "apo_zero_unpaired": False}
"""By loss type: whether z0 is the mean over mismatched pairs. Else it is 0, and no KL rows are built or asked for."""
LOSS_TYPES = tuple(USES_KL)


class LossSettings(NamedTuple):
    """Keywords of the loss that stay the same through a run."""

    beta: float
    desirable_weight: float
    undesirable_weight: float
    loss_type: str


class KTOLoss(NamedTuple):
    """What `kto_loss` returns. Only `loss` carries a gradient."""

    loss: torch.Tensor
    """Scalar, eq. (6)."""
    rewards: torch.Tensor
    """(B,) `beta * (logps - ref_logps)`, the implied reward in units of beta * nats."""
    z0: torch.Tensor
    """Scalar, the reference point after the clamp, in nats, eq. (4)."""
    kl: torch.Tensor
    """(B,) log-ratios k_i of the mismatched pairs, in nats, eq. (3); empty where no KL term is used."""
    utilities: torch.Tensor
    """(B,) u_i: the sigmoid's argument, positive where the row is on the right side of the reference point."""


def uses_kl(loss_type: str) -> bool:
    """Whether the loss has a KL term, and so needs the mismatched pairs. Errors: `InputError` for an unknown type."""
    if loss_type not in USES_KL:
        raise InputError("loss_type", loss_type, f"one of {LOSS_TYPES}", "Correct the name.")
    return USES_KL[loss_type]


def check_rows_to_pair(argument: str, rows: int) -> None:
    """Raise `InputError` for a micro-batch of one row, which has no other row to take a completion from."""
    if rows < 2:
        expected = "at least 2: the KL term pairs each prompt with another row's completion"
        fix = "Raise it, and set max_tokens_per_forward to bound the memory of one forward: its rows share one z0."
        raise InputError(argument, rows, expected, fix)


def reference_point(kl_B: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """z0 of eq. (4): `kl.mean().clamp(min=0)`, the mean over all ranks' rows when `reduce` sums over ranks."""
    return clamped_mean(reduced(sum_and_count(kl_B), reduce))


def sum_and_count(kl_B: torch.Tensor) -> torch.Tensor:
    """`stack([kl.sum(), kl.numel()])` (2,), detached: what ranks add up."""
    return torch.stack([kl_B.sum(), kl_B.new_full((), float(kl_B.numel()))]).detach()


def clamped_mean(sum_and_count: torch.Tensor) -> torch.Tensor:
    """`(sum / count).clamp(min=0)`; a NaN stays."""
    return (sum_and_count[0] / sum_and_count[1]).clamp(min=0)


def class_sums(labels_B: torch.Tensor, rewards_B: torch.Tensor, logps_B: torch.Tensor) -> torch.Tensor:
    """(6,) count, rewards and log-probs of the desirable rows, then of the undesirable ones, for the log."""
    one_B = torch.ones_like(logps_B)
    # where, not a product: a non-finite row shows in its own class only
    return torch.stack(
        [
            x.where(rows, torch.zeros_like(x)).sum()
            for rows in (labels_B, ~labels_B)
            for x in (one_B, rewards_B, logps_B)
        ]
    ).detach()


def utilities(
    log_ratios_B: torch.Tensor,
    labels_B: torch.Tensor,
    z0: torch.Tensor,
    *,
    beta: float,
    loss_type: str = "kto",
) -> torch.Tensor:
    """u of eq. (5): `where(label, beta * (r - z0), beta * (z0 - r))`; `apo_zero_unpaired` has z0 = 0."""
    shifted_B = log_ratios_B if loss_type == "apo_zero_unpaired" else log_ratios_B - z0
    return torch.where(labels_B, beta * shifted_B, -beta * shifted_B)


def row_weights(
    labels_B: torch.Tensor,
    weights_B: torch.Tensor | None = None,
    *,
    desirable_weight: float,
    undesirable_weight: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """w * lambda of eq. (6): `weights * where(label, desirable_weight, undesirable_weight)`; no weights are all 1."""
    # not where(label, float, float): it rounds both weights to float32 first
    lambda_B = torch.full_like(labels_B, undesirable_weight, dtype=dtype).masked_fill(labels_B, desirable_weight)
    return lambda_B if weights_B is None else weights_B.detach().to(dtype) * lambda_B


def denominator(
    num_rows: float | torch.Tensor | None, rows: int, weights_B: torch.Tensor | None
) -> float | torch.Tensor:
    """What eq. (6) divides by: `num_rows`, or the sum of the weights; 1 for a sum of 0, so that the loss is 0."""
    if weights_B is None:
        return rows if num_rows is None else num_rows
    total = weights_B.detach().sum() if num_rows is None else num_rows
    return one_for_zero(total)


def one_for_zero(total: float | torch.Tensor) -> float | torch.Tensor:
    """`total`, or 1 where it is 0; nothing waits for the device."""
    return total.masked_fill(total == 0, 1) if isinstance(total, torch.Tensor) else total or 1


def logp_gradients(
    utilities_B: torch.Tensor,
    labels_B: torch.Tensor,
    weights_B: torch.Tensor,
    *,
    beta: float,
    num_rows: float | torch.Tensor,
) -> torch.Tensor:
    """c of eq. (7), d loss / d logp: `-+ weights * beta * sigmoid(u) * sigmoid(-u) / num_rows` (- desirable)."""
    magnitude_B = weights_B * beta * torch.sigmoid(utilities_B) * torch.sigmoid(-utilities_B) / num_rows
    return torch.where(labels_B, -magnitude_B, magnitude_B)


def kto_loss(
    logps: torch.Tensor,
    ref_logps: torch.Tensor,
    labels: torch.Tensor,
    *,
    kl_logps: torch.Tensor | None = None,
    ref_kl_logps: torch.Tensor | None = None,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss_type: str = "kto",
    weights: torch.Tensor | None = None,
    num_rows: float | torch.Tensor | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> KTOLoss:
    """KTO loss of summed log-probs: `(weights * lambda * sigmoid(-u)).sum() / weights.sum()`.

    u = +-beta * (logps - ref_logps - z0).

    Args:
        logps: (B,) log pi(y|x), summed over the completion's tokens, in nats; the gradient flows through it.
        ref_logps: (B,) the same under the reference model.
        labels: (B,) bool, True for a desirable row.
        kl_logps: (B',) log pi(y'|x) of the mismatched pairs; never differentiated. Required for "kto".
        ref_kl_logps: (B',) the same under the reference model.
        beta: sensitivity to the log-ratio, per nat.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
        loss_type: "kto", or "apo_zero_unpaired" (z0 = 0; arXiv 2408.06266, eq. 7 unpaired).
        weights: (B,) floats, finite and >= 0, w of eq. (6); all 1 if None. z0 takes no notice of them.
        num_rows: what eq. (6) divides by when an optimizer step spans several calls: the weights of all its rows added
            up, or their number; `weights.sum()` or B if None. Where it is 0 the loss is 0.
        reduce: sums a (2,) tensor over all ranks, so that z0 is the mean over every rank's rows.

    Returns:
        `KTOLoss` in the dtype of `logps` (float32 at least).

    Raises:
        ValueError: what is no tensor, or of another shape or device; labels that are not bool, a missing KL stream, an
            unknown loss_type, numbers out of range, a `reduce` that returns no sum; on a CPU also weights below 0 or
            not finite, which a GPU would have to be waited for to see.

    Source: eqs. (2) to (6); arXiv 2402.01306, eq. 7 and section 4.1.
    """
    with_kl = uses_kl(loss_type)
    check_tensor("logps", logps, 1)
    check_loss_arguments(logps.shape[0], ref_logps, labels, weights, like=logps)
    check_numbers(beta, desirable_weight, undesirable_weight, num_rows, weights)
    logps = logps if logps.dtype == torch.float64 else logps.float()
    ref_logps = ref_logps.to(logps.dtype)
    kl_B = log_ratios_of_pairs(kl_logps, ref_kl_logps, logps, loss_type=loss_type)
    z0 = reference_point(kl_B, reduce) if with_kl else logps.new_zeros(())
    log_ratios_B = logps - ref_logps.detach()
    u_B = utilities(log_ratios_B, labels, z0, beta=beta, loss_type=loss_type)
    weights_B = row_weights(
        labels, weights, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight, dtype=logps.dtype
    )
    loss = (weights_B * torch.sigmoid(-u_B)).sum() / denominator(num_rows, logps.shape[0], weights)
    return KTOLoss(loss, beta * log_ratios_B.detach(), z0, kl_B, u_B.detach())


def log_ratios_of_pairs(
    kl_logps: torch.Tensor | None, ref_kl_logps: torch.Tensor | None, like: torch.Tensor, *, loss_type: str
) -> torch.Tensor:
    """k of eq. (3), detached: `kl_logps - ref_kl_logps`; empty for a loss type without a KL term."""
    if not uses_kl(loss_type):
        return like.new_zeros(0)
    if kl_logps is None:
        raise no_pairs()
    ref_kl_logps = check_pairs(kl_logps.shape, ref_kl_logps)
    return kl_logps.detach().to(like.dtype) - ref_kl_logps.detach().to(like.dtype)
