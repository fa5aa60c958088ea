# mypy: allow-untyped-defs, allow-incomplete-defs
"""The KTO loss behind the head: one small kernel on each side of the cross-rank reduction of z0. Legend: B rows.

Equations are those of Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (arXiv
2402.01306), sections 3 and 4, on log-probs summed over a row's tokens.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import launch


class RowSums(NamedTuple):
    """What is known before z0."""

    logps: torch.Tensor
    """(B,) summed log-probs, nats."""
    log_ratios: torch.Tensor
    """(B,) `logps - ref_logps`."""
    sum_and_count: torch.Tensor
    """(2,) sum of the log-ratios and B: of the mismatched pairs, this is what ranks add up for z0."""


class Terms(NamedTuple):
    """What follows from z0."""

    loss: torch.Tensor
    """Scalar: `(weights * lambda * sigmoid(-u)).sum() / num_rows`."""
    z0: torch.Tensor
    """Scalar, after the clamp, nats."""
    rewards: torch.Tensor
    """(B,) `beta * log_ratios`."""
    utilities: torch.Tensor
    """(B,) u, the sigmoid's argument."""
    coefficients: torch.Tensor
    """(B,) d loss / d logp."""
    statistics: torch.Tensor
    """(6,) sums over the desirable rows (count, rewards, logps), then over the undesirable rows."""


@triton.jit(do_not_specialize=["B"])
def row_sums_kernel(tokens, offsets, ref, logps, ratios, sum_and_count, B, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One program: rows in groups of ROWS, tokens in steps of BLOCK. A row's order of additions depends on it alone."""
    kind = logps.dtype.element_ty
    everything = tl.zeros((ROWS,), kind)
    for first in range(0, B, ROWS):
        rows = first + tl.arange(0, ROWS)
        here = rows < B
        begin = tl.load(offsets + rows, mask=here, other=0)
        end = tl.load(offsets + rows + 1, mask=here, other=0)
        sums = tl.zeros((ROWS, BLOCK), kind)
        for step in range(0, tl.max(end - begin, axis=0), BLOCK):
            at = begin[:, None] + step + tl.arange(0, BLOCK)[None, :]
            sums += tl.load(tokens + at, mask=at < end[:, None], other=0.0)
        total = tl.sum(sums, axis=1)
        ratio = total - tl.load(ref + rows, mask=here, other=0.0).to(kind)
        tl.store(logps + rows, total, mask=here)
        tl.store(ratios + rows, ratio, mask=here)
        everything += tl.where(here, ratio, 0.0)
    tl.store(sum_and_count, tl.sum(everything, axis=0))
    tl.store(sum_and_count + 1, tl.cast(B, kind))


@triton.jit(do_not_specialize=["B"])
def terms_kernel(
    logps,
    ratios,
    labels,
    sum_and_count,
    num_rows,
    weights,
    loss,
    z0_out,
    rewards,
    utilities,
    coefficients,
    statistics,
    B,
    BETA: tl.constexpr,
    DESIRABLE: tl.constexpr,
    UNDESIRABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program. `sum_and_count` is None for a loss with z0 = 0; a NaN in it is not clamped away. `weights` may be
    None: all 1."""
    kind = ratios.dtype.element_ty
    z0 = tl.zeros((), kind)
    if sum_and_count is not None:
        mean = tl.load(sum_and_count) / tl.load(sum_and_count + 1)
        z0 = tl.where(mean < 0, 0.0, mean).to(kind)
    rows_of_step = tl.load(num_rows).to(kind)
    losses = tl.zeros((BLOCK,), kind)
    counts, count_d = tl.zeros((BLOCK,), kind), tl.zeros((BLOCK,), kind)
    reward_d, reward_u = tl.zeros((BLOCK,), kind), tl.zeros((BLOCK,), kind)
    logp_d, logp_u = tl.zeros((BLOCK,), kind), tl.zeros((BLOCK,), kind)
    for first in range(0, B, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        here = rows < B
        good = tl.load(labels + rows, mask=here, other=0) != 0
        logp = tl.load(logps + rows, mask=here, other=0.0)
        ratio = tl.load(ratios + rows, mask=here, other=0.0)
        u = tl.where(good, BETA * (ratio - z0), BETA * (z0 - ratio))
        right, wrong = 1.0 / (1.0 + tl.exp(-u)), 1.0 / (1.0 + tl.exp(u))
        weight = tl.where(good, DESIRABLE, UNDESIRABLE).to(kind)
        if weights is not None:
            weight *= tl.load(weights + rows, mask=here, other=0.0).to(kind)
        size = weight * BETA * right * wrong / rows_of_step
        reward = BETA * ratio
        tl.store(rewards + rows, reward, mask=here)
        tl.store(utilities + rows, u, mask=here)
        tl.store(coefficients + rows, tl.where(good, -size, size), mask=here)
        losses += tl.where(here, weight * wrong, 0.0)
        counts += tl.where(here, 1.0, 0.0)
        count_d += tl.where(good, 1.0, 0.0)
        reward_d += tl.where(good, reward, 0.0)
        reward_u += tl.where(good, 0.0, reward)
        logp_d += tl.where(good, logp, 0.0)
        logp_u += tl.where(good, 0.0, logp)
    tl.store(loss, tl.sum(losses, axis=0) / rows_of_step)
    tl.store(z0_out, z0)
    desirable = tl.sum(count_d, axis=0)
    tl.store(statistics + 0, desirable)
    tl.store(statistics + 1, tl.sum(reward_d, axis=0))
    tl.store(statistics + 2, tl.sum(logp_d, axis=0))
    tl.store(statistics + 3, tl.sum(counts, axis=0) - desirable)
    tl.store(statistics + 4, tl.sum(reward_u, axis=0))
    tl.store(statistics + 5, tl.sum(logp_u, axis=0))


def row_sums(logps: torch.Tensor, cu_seqlens: torch.Tensor, ref_logps: torch.Tensor) -> RowSums:
    """`stack([logps[a:b].sum() for a, b in pairs(cu_seqlens)])` and its difference to `ref_logps`, eqs. (2) and (3).

    Args:
        logps: (N,) log-probs of the tokens, float32 or float64, nats.
        cu_seqlens: (B + 1,) int64 on the same device.
        ref_logps: (B,) summed log-probs under the reference model.
    """
    rows = ref_logps.shape[0]
    sums, ratios, both = logps.new_empty(rows), logps.new_empty(rows), logps.new_empty(2)
    launch(row_sums_kernel, 1, logps.device, logps, cu_seqlens, ref_logps, sums, ratios, both, rows, ROWS=16, BLOCK=256)
    return RowSums(sums, ratios, both)


def kto_terms(
    rows: RowSums,
    labels: torch.Tensor,
    kl_sum_and_count: torch.Tensor | None,
    num_rows: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Terms:
    """z0, the sigmoid loss, its coefficients and the logged sums, eqs. (4) to (7), in one launch and no wait.

    Args:
        rows: `row_sums` of the target stream.
        labels: (B,) bool, True for a desirable row.
        kl_sum_and_count: `row_sums(...).sum_and_count` of the mismatched pairs, added up over the ranks; None for
            "apo_zero_unpaired" (z0 = 0).
        num_rows: one-element tensor, the rows of the whole optimizer step, or their weights added up.
        weights: (B,) w of eq. (6); all 1 if None.
        beta: per nat.
        desirable_weight, undesirable_weight: lambda_D, lambda_U.
    """
    like = rows.log_ratios
    scalars, vectors = like.new_empty(2), like.new_empty(3, like.shape[0])
    terms = Terms(scalars[0], scalars[1], vectors[0], vectors[1], vectors[2], like.new_empty(6))
    launch(
        terms_kernel,
        1,
        like.device,
        rows.logps,
        like,
        labels,
        kl_sum_and_count,
        num_rows,
        weights,
        *terms,
        like.shape[0],
        BETA=beta,
        DESIRABLE=desirable_weight,
        UNDESIRABLE=undesirable_weight,
        BLOCK=256,
    )
    return terms
