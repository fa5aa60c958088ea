"""One micro-step: trunk, head, loss. Every function takes the collator's batch, packed or padded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastkto.head.fused_kto import FusedKTO, fused_linear_kto, kto_of_token_stats, row_sums
from fastkto.head.logprobs import TokenStats, module_token_stats, token_stats
from fastkto.losses.kto import LossSettings
from fastkto.trunk.modules import Head
from fastkto.trunk.run import Batch, ModelRun, num_forwards, run_batch, run_extra_forwards
from fastkto.trunk.scorer import Scored


class ReferenceLogps(NamedTuple):
    """What a micro-step is told by the reference, which runs before the policy."""

    logps: torch.Tensor
    """(B,) summed log-probs of the rows."""
    kl_logps: torch.Tensor | None
    """(B,) of their mismatched pairs; None where the batch has no KL stream."""
    forwards: int = 0
    """How many forwards the ranks agreed on, where each of them has to run as many; 0 where none has to."""


def row_logps(
    run: ModelRun, batch: Batch, *, graph: bool = False, forwards: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed log-probs of the rows (B,) and of their mismatched pairs (B,), the latter never with a graph.

    `forwards`: run at least so many, for the sake of other ranks.
    """
    with torch.set_grad_enabled(graph):
        parts = run_batch(run, batch, lambda scored: _stats(scored, run.backend))
        run_extra_forwards(run, batch, forwards, lambda scored: _stats(scored, run.backend))
    stats, kl_logps = _of_all_rows(parts)
    return row_sums(stats.logps, batch["cu_seqlens"], run.backend), kl_logps


def kto_step(
    run: ModelRun,
    batch: Batch,
    reference: ReferenceLogps,
    settings: LossSettings,
    *,
    num_rows: float | torch.Tensor | None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None,
) -> tuple[FusedKTO, torch.Tensor | None]:
    """Loss of a micro-batch, its rows weighted where they have weights, and the trunk's auxiliary loss averaged over
    its rows. `num_rows`: the `weight_of` all batches of the optimizer step.

    In one forward the head knows z0 before it scores the targets and forms gradients on the way (`fused_linear_kto`).
    Several forwards share one z0, so their graphs wait for it; those run for other ranks add nothing.
    """
    labels = batch["label"]
    loss: dict[str, Any] = {**settings._asdict(), "num_rows": num_rows, "reduce": reduce}
    if "weights" in batch:
        loss["weights"] = torch.tensor(batch["weights"], dtype=torch.float32).to(labels.device, non_blocking=True)
    if run.plain_head and max(num_forwards(run, batch), reference.forwards) == 1:

        def fused(scored: Scored) -> tuple[FusedKTO, torch.Tensor | None]:
            out = fused_linear_kto(
                scored.hidden,
                scored.head.module.weight,
                scored.targets,
                scored.cu_seqlens,
                labels,
                reference.logps,
                kl_hidden=scored.kl_hidden,
                kl_targets=scored.kl_targets,
                kl_cu_seqlens=scored.kl_cu_seqlens,
                ref_kl_logps=reference.kl_logps,
                bias=scored.head.module.bias,
                softcap=scored.head.softcap,
                scale=scored.head.scale,
                stats=True,
                backend=run.backend,
                **loss,
            )
            return out, scored.aux_loss

        return run_batch(run, batch, fused)[0]

    parts = run_batch(run, batch, lambda scored: _stats(scored, run.backend))
    extra = run_extra_forwards(run, batch, reference.forwards, lambda scored: _stats(scored, run.backend))
    stats, kl_logps = _of_all_rows(parts)
    out = kto_of_token_stats(
        stats,
        batch["cu_seqlens"],
        labels,
        reference.logps,
        kl_logps=kl_logps,
        ref_kl_logps=reference.kl_logps,
        backend=run.backend,
        **loss,
    )
    if extra:  # the backward gathers weights too
        out = out._replace(loss=out.loss + 0.0 * torch.cat([part.tokens.logps for part in extra]).sum())
    return out, _mean_aux_loss(parts)


class _PartStats(NamedTuple):
    """One forward's part of the rows."""

    tokens: TokenStats
    kl_logps: torch.Tensor | None
    aux_loss: torch.Tensor | None
    rows: int


def _stats(scored: Scored, backend: str) -> _PartStats:
    hidden, targets, positions = scored.hidden, scored.targets, len(scored.targets)
    kl_logps = kl = None
    if scored.kl_hidden is not None and scored.kl_targets is not None and scored.kl_cu_seqlens is not None:
        if torch.is_grad_enabled():
            with torch.no_grad():
                kl = _token_stats(scored.head, scored.kl_hidden, scored.kl_targets, backend).logps
        else:  # both streams in one run of the head
            hidden, targets = torch.cat([hidden, scored.kl_hidden]), torch.cat([targets, scored.kl_targets])
    tokens = _token_stats(scored.head, hidden, targets, backend)
    if scored.kl_cu_seqlens is not None:
        kl_logps = row_sums(tokens.logps[positions:] if kl is None else kl, scored.kl_cu_seqlens, backend)
    tokens = TokenStats(*(x[:positions] for x in tokens))
    return _PartStats(tokens, kl_logps, scored.aux_loss, len(scored.cu_seqlens) - 1)


def _token_stats(head: Head, hidden: torch.Tensor, targets: torch.Tensor, backend: str) -> TokenStats:
    if not head.plain:
        return module_token_stats(head.module, hidden, targets, softcap=head.softcap, scale=head.scale)
    weight, bias = head.module.weight, head.module.bias
    return token_stats(hidden, weight, targets, bias=bias, softcap=head.softcap, scale=head.scale, backend=backend)


def _of_all_rows(parts: list[_PartStats]) -> tuple[TokenStats, torch.Tensor | None]:
    stats = TokenStats(*(torch.cat(x) for x in zip(*(part.tokens for part in parts), strict=True)))
    kl_logps = [part.kl_logps for part in parts if part.kl_logps is not None]
    return stats, torch.cat(kl_logps) if kl_logps else None


def _mean_aux_loss(parts: list[_PartStats]) -> torch.Tensor | None:
    rows = sum(part.rows for part in parts)
    losses = [part.aux_loss * (part.rows / rows) for part in parts if part.aux_loss is not None]
    return torch.stack(losses).sum() if losses else None
