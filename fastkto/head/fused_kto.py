"""Head and loss in one: hidden states to the KTO loss, rewards and log-probs, with no logits in memory.

Legend: N scored positions (N' of the KL stream), D hidden, V vocabulary, B rows.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from fastkto.errors import InputError
from fastkto.head.backends import choose
from fastkto.head.backends.base import Backend, HeadInputs, Wanted
from fastkto.head.backends.blocks import spread
from fastkto.head.backends.loss_terms import RowSums, Terms
from fastkto.head.logprobs import TokenStats, head_inputs, token_logprobs
from fastkto.losses.checks import check_loss_arguments, check_numbers, check_pairs, no_pairs, reduced
from fastkto.losses.kto import LossSettings, class_sums, denominator, kto_loss, uses_kl


class FusedKTO(NamedTuple):
    """What `fused_linear_kto` returns. Only `loss` carries a gradient."""

    loss: torch.Tensor
    """Scalar, eq. (6)."""
    rewards: torch.Tensor
    """(B,) `beta * (logps - ref_logps)`."""
    logps: torch.Tensor
    """(B,) log pi(y|x), nats."""
    z0: torch.Tensor
    """Scalar, after the clamp, nats."""
    kl: torch.Tensor
    """(B',) log-ratios of the mismatched pairs, nats; empty for "apo_zero_unpaired"."""
    utilities: torch.Tensor
    """(B,) u_i."""
    class_sums: torch.Tensor
    """(6,) count, rewards and logps of the desirable rows, then of the undesirable ones."""
    entropy: torch.Tensor | None
    """(N,) nats, with `stats`."""
    mean_logits: torch.Tensor | None
    """(N,), with `stats`."""


def fused_linear_kto(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    cu_seqlens: Sequence[int] | torch.Tensor,
    labels: torch.Tensor,
    ref_logps: torch.Tensor,
    *,
    kl_hidden: torch.Tensor | None = None,
    kl_targets: torch.Tensor | None = None,
    kl_cu_seqlens: Sequence[int] | torch.Tensor | None = None,
    ref_kl_logps: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss_type: str = "kto",
    weights: torch.Tensor | None = None,
    num_rows: float | torch.Tensor | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    stats: bool = False,
    backend: str = "auto",
) -> FusedKTO:
    """`kto_loss(row_sums(token_logprobs(hidden, weight, targets)), ref_logps, labels, kl_logps=...)`, fused.

    z0 is known before the target head runs, so a block of whole rows turns its logits into gradients at once: 6 NDV
    with W trained, 4 NDV with W frozen. The gradients are formed here and scaled by the upstream gradient later.

    Args:
        hidden: (N, D) at the positions that predict a completion token, row after row.
        weight: (V, D) of the LM head.
        targets: (N,) int64, the completion tokens.
        cu_seqlens: B + 1 offsets of the rows in N, from 0 to N. Host integers; a CUDA tensor would make the GPU wait.
        labels: (B,) bool, True for a desirable row.
        ref_logps: (B,) summed log-probs under the reference model, nats.
        kl_hidden: (N', D) at the positions that predict y' given x; never differentiated.
        kl_targets: (N',) int64.
        kl_cu_seqlens: B' + 1 offsets.
        ref_kl_logps: (B',) summed log-probs of y' under the reference.
        bias, softcap, scale, backend: as in `token_logprobs`.
        beta, desirable_weight, undesirable_weight, loss_type, weights, num_rows, reduce: as in `kto_loss`.
        stats: also return each position's entropy and mean logit.

    Returns:
        `FusedKTO`, float32 (float64 for float64 inputs).

    Raises:
        ValueError: as `token_logprobs` and `kto_loss`, and for offsets that do not run from 0 to N.

    Source: eqs. (1) to (7); arXiv 2402.01306, eq. 7 and section 4.1.
    """
    head, wanted = head_inputs(hidden, weight, targets, bias, softcap, scale)
    cu_seqlens = _checked("cu_seqlens", cu_seqlens, hidden.shape[0])
    with_kl = uses_kl(loss_type)
    check_loss_arguments(len(cu_seqlens) - 1, ref_logps, labels, weights, like=hidden)
    check_numbers(beta, desirable_weight, undesirable_weight, num_rows, weights)
    num_rows = denominator(num_rows, len(cu_seqlens) - 1, weights)
    loss = LossSettings(beta, desirable_weight, undesirable_weight, loss_type)
    chosen = choose(backend, hidden.device, head.compute_dtype)
    kl_B, kl_sum_and_count = ref_logps.new_empty(0, dtype=head.sum_dtype), None
    if with_kl:
        if kl_hidden is None or kl_targets is None or kl_cu_seqlens is None:
            raise no_pairs()
        kl_cu_seqlens = _checked("kl_cu_seqlens", kl_cu_seqlens, kl_hidden.shape[0])
        check_pairs((len(kl_cu_seqlens) - 1,), ref_kl_logps)
        with torch.no_grad():
            kl_tokens = token_logprobs(
                kl_hidden, weight, kl_targets, bias=bias, softcap=softcap, scale=scale, backend=backend
            )
        _, kl_B, kl_sum_and_count = chosen.row_sums(kl_tokens, kl_cu_seqlens, ref_kl_logps)
        kl_sum_and_count = reduced(kl_sum_and_count, reduce)
    rows = cu_seqlens, labels, weights, ref_logps, kl_sum_and_count
    total, logps_B, z0, rewards_B, u_B, sums, entropy_N, mean_logits_N = _FusedLinearKTO.apply(
        hidden, weight, bias, head, *rows, loss, num_rows, chosen, wanted, stats
    )
    return FusedKTO(total, rewards_B, logps_B, z0, kl_B, u_B, sums, entropy_N, mean_logits_N)


class _FusedLinearKTO(torch.autograd.Function):
    """Forms the gradients in the forward, where the logits are; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        head: HeadInputs,
        cu_seqlens: list[int],
        labels_B: torch.Tensor,
        weights_B: torch.Tensor | None,
        ref_logps_B: torch.Tensor,
        kl_sum_and_count: torch.Tensor | None,
        loss: LossSettings,
        num_rows: float | torch.Tensor,
        backend: Backend,
        wanted: Wanted,
        stats: bool,
    ) -> tuple[torch.Tensor | None, ...]:
        parts: list[tuple[RowSums, Terms]] = []

        def coefficients(rows: slice, logps_N: torch.Tensor, block_cu_seqlens: Sequence[int]) -> torch.Tensor:
            sums = backend.row_sums(logps_N, block_cu_seqlens, ref_logps_B[rows])
            own = None if weights_B is None else weights_B[rows]
            parts.append((sums, backend.terms(sums, labels_B[rows], kl_sum_and_count, loss, num_rows, own)))
            return parts[-1][1].coefficients_B

        with torch.autocast(hidden_ND.device.type, enabled=False):
            if any(wanted):
                out, grads = backend.forward_backward(head, cu_seqlens, coefficients, wanted, stats=stats)
                ctx.save_for_backward(*grads)
            else:
                out = backend.forward(head, stats=stats, unit_dx=False)
                coefficients(slice(None), out.logps_N, cu_seqlens)
            sums, terms = _joined_blocks(parts)
        ctx.set_materialize_grads(False)
        rows = sums.logps_B, terms.z0, terms.rewards_B, terms.utilities_B, terms.class_sums
        found = *rows, out.entropy_N, out.mean_logits_N
        ctx.mark_non_differentiable(*(x for x in found if x is not None))
        return terms.loss, *found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, ...]:
        if grad is None:
            return (None,) * 14
        grads: Any = ctx.saved_tensors
        if grad.device.type != "cpu" or grad.item() != 1:  # to look would make a GPU wait
            grads = [None if x is None else (x * grad).to(x.dtype) for x in grads]
        return *grads, *(None,) * 11


def _joined_blocks(parts: list[tuple[RowSums, Terms]]) -> tuple[RowSums, Terms]:
    """The blocks' rows one after another; what is a sum over rows is added up."""
    if len(parts) == 1:
        return parts[0]
    sums, terms = zip(*parts, strict=True)
    logps_B, ratios_B, both = zip(*sums, strict=True)
    losses, z0, rewards_B, u_B, coefficients_B, class_sums = zip(*terms, strict=True)
    return (
        RowSums(torch.cat(logps_B), torch.cat(ratios_B), torch.stack(both).sum(0)),
        Terms(
            torch.stack(losses).sum(),
            z0[0],
            torch.cat(rewards_B),
            torch.cat(u_B),
            torch.cat(coefficients_B),
            torch.stack(class_sums).sum(0),
        ),
    )


def _checked(name: str, given: Sequence[int] | torch.Tensor, positions: int) -> list[int]:
    cu_seqlens = given.tolist() if isinstance(given, torch.Tensor) else list(given)
    if not all(isinstance(offset, int) for offset in cu_seqlens):
        raise InputError(name, cu_seqlens, "integers", "Offsets count scored positions.")
    rising = all(a <= b for a, b in itertools.pairwise(cu_seqlens))
    if len(cu_seqlens) < 2 or cu_seqlens[0] != 0 or cu_seqlens[-1] != positions or not rising:
        expected = f"rising offsets from 0 to the {positions} scored positions"
        raise InputError(name, cu_seqlens, expected, "Pass [0, n_1, n_1 + n_2, ...], one entry more than rows.")
    return cu_seqlens


def kto_of_token_stats(
    stats: TokenStats,
    cu_seqlens: Sequence[int],
    labels: torch.Tensor,
    ref_logps: torch.Tensor,
    *,
    kl_logps: torch.Tensor | None,
    ref_kl_logps: torch.Tensor | None,
    backend: str = "auto",
    **loss: Any,
) -> FusedKTO:
    """`fused_linear_kto` for log-probs that came from several forwards or through the head's own module.

    `kto_loss(row_sums(stats.logps), ...)`; the gradient flows through `stats.logps`. `loss`: as in `kto_loss`.
    """
    logps_B = row_sums(stats.logps, cu_seqlens, backend)
    out = kto_loss(logps_B, ref_logps, labels, kl_logps=kl_logps, ref_kl_logps=ref_kl_logps, **loss)
    logps_B = logps_B.detach()
    sums = class_sums(labels, out.rewards, logps_B)
    return FusedKTO(out.loss, out.rewards, logps_B, *out[2:], sums, stats.entropy, stats.mean_logits)


def row_sums(x_N: torch.Tensor, cu_seqlens: Sequence[int], backend: str = "auto") -> torch.Tensor:
    """`stack([x[a:b].sum() for a, b in pairs(cu_seqlens)])` (B,), in the order of additions of `fused_linear_kto`.

    So that a policy equal to its reference has log-ratios of exactly 0, however either is scored.
    """
    sums: torch.Tensor = _RowSums.apply(x_N, list(cu_seqlens), choose(backend, x_N.device, x_N.dtype))
    return sums


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_N: torch.Tensor, cu_seqlens: list[int], backend: Backend) -> torch.Tensor:
        ctx.cu_seqlens = cu_seqlens
        return backend.row_sums(x_N, cu_seqlens, None).logps_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return spread(grad_B, ctx.cu_seqlens), None, None
