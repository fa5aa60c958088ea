"""What a run logs: sums kept on the device through the steps, one reduction and one host sync at each log line."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastkto.batch.targets_and_kl import weight_of
from fastkto.head.fused_kto import FusedKTO, row_sums

SATURATED = 3.6368929  # |u| from which sigmoid(u) * sigmoid(-u) is below a tenth of its maximum of 1/4


class Sums(NamedTuple):
    """Additive statistics of micro-steps; every figure of a log line is a quotient of these."""

    steps: torch.Tensor
    z0: torch.Tensor
    kl: torch.Tensor
    kl_squared: torch.Tensor
    kl_rows: torch.Tensor
    desirable: torch.Tensor
    undesirable: torch.Tensor
    rewards_desirable: torch.Tensor
    rewards_undesirable: torch.Tensor
    logps_desirable: torch.Tensor
    logps_undesirable: torch.Tensor
    logits_desirable: torch.Tensor
    logits_undesirable: torch.Tensor
    tokens_desirable: torch.Tensor
    tokens_undesirable: torch.Tensor
    entropy: torch.Tensor
    right: torch.Tensor
    saturated: torch.Tensor
    aux_loss: torch.Tensor
    aux_steps: torch.Tensor
    num_tokens: torch.Tensor
    weight: torch.Tensor


def step_sums(out: FusedKTO, batch: dict[str, Any], aux_loss: torch.Tensor | None) -> torch.Tensor:
    """The `Sums` of one micro-step as a float64 vector; nothing here waits for the device."""
    assert out.entropy is not None
    assert out.mean_logits is not None
    labels, cu_seqlens = batch["label"], batch["cu_seqlens"]
    one = out.z0.new_ones(())
    desirable, rewards_d, logps_d, undesirable, rewards_u, logps_u = out.class_sums.unbind()
    lengths_B = torch.tensor(cu_seqlens, dtype=one.dtype).diff().to(one.device, non_blocking=True)
    logits_B = row_sums(out.mean_logits, cu_seqlens)

    def by_class(x_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # where, not a product: a non-finite row shows in its own class only
        zeros = torch.zeros_like(x_B)
        return torch.where(labels, x_B, zeros).sum(), torch.where(labels, zeros, x_B).sum()

    logits, tokens = by_class(logits_B), by_class(lengths_B)
    sums = Sums(
        steps=one,
        z0=out.z0,
        kl=out.kl.sum(),
        kl_squared=out.kl.square().sum(),
        kl_rows=one * out.kl.numel(),
        desirable=desirable,
        undesirable=undesirable,
        rewards_desirable=rewards_d,
        rewards_undesirable=rewards_u,
        logps_desirable=logps_d,
        logps_undesirable=logps_u,
        logits_desirable=logits[0],
        logits_undesirable=logits[1],
        tokens_desirable=tokens[0],
        tokens_undesirable=tokens[1],
        entropy=out.entropy.sum(),
        right=(out.utilities > 0).sum(),
        saturated=(out.utilities.abs() > SATURATED).sum(),
        aux_loss=one * 0 if aux_loss is None else aux_loss.detach(),
        aux_steps=one * (aux_loss is not None),
        num_tokens=one * batch["num_tokens"],
        weight=one.double() * weight_of(batch),
    )
    return torch.stack([x.detach().double() for x in sums])


class Meter:
    """Adds micro-steps up, and turns them into the figures of a log line."""

    def __init__(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._reduce = reduce
        self._total: torch.Tensor | None = None
        self.mean_weight: torch.Tensor | None = None
        """Of a row, at the last flush."""

    def add(self, sums: torch.Tensor) -> None:
        """Take in one micro-step."""
        self._total = sums if self._total is None else self._total + sums

    def clear(self) -> None:
        """Forget what was added."""
        self._total = None

    def flush(self) -> dict[str, float]:
        """The figures since the last flush over all ranks, and start anew. Empty if nothing was added."""
        if self._total is None:
            return {}
        sums = Sums(*self._reduce(self._total).unbind())
        self._total = None
        self.mean_weight = sums.weight / (sums.desirable + sums.undesirable)
        return figures(sums)


def figures(sums: Sums) -> dict[str, float]:
    """Log figures under TRL's names where TRL has one; a class that did not occur is left out.

    rewards in beta * nats, logps and kl in nats per row, entropy in nats per token. `kl` is z0 after the clamp, a mean
    over micro-steps; `kl/raw` the mean log-ratio of the mismatched pairs before it and `kl/stderr` the standard error
    of one micro-step's. `rewards/accuracies`: share of rows on the right side of the reference point.
    `saturated`: share of rows whose gradient weight sigmoid(u) * sigmoid(-u) is below a tenth of its maximum.
    `num_tokens`: tokens of the target stream since the last line.
    """
    s: Any = Sums(*torch.stack(sums).tolist())  # one wait for all of them
    if not s.steps:  # every one was left out (on_nonfinite="skip")
        return {"num_tokens": 0.0}
    rows, tokens = s.desirable + s.undesirable, s.tokens_desirable + s.tokens_undesirable
    figures: dict[str, float] = {"kl": s.z0 / s.steps, "num_tokens": s.num_tokens}
    if s.kl_rows:
        mean = s.kl / s.kl_rows
        variance = max(s.kl_squared / s.kl_rows - mean**2, 0.0) if s.kl_rows > 1 else 0.0
        figures["kl/raw"] = mean
        figures["kl/stderr"] = (variance * s.steps / s.kl_rows) ** 0.5
    if tokens:
        figures["entropy"] = s.entropy / tokens
    for name, count, rewards, logps, logits, scored in (
        ("chosen", s.desirable, s.rewards_desirable, s.logps_desirable, s.logits_desirable, s.tokens_desirable),
        (
            "rejected",
            s.undesirable,
            s.rewards_undesirable,
            s.logps_undesirable,
            s.logits_undesirable,
            s.tokens_undesirable,
        ),
    ):
        if count:
            figures[f"rewards/{name}"] = rewards / count
            figures[f"logps/{name}"] = logps / count
        if scored:
            figures[f"logits/{name}"] = logits / scored
    if s.desirable and s.undesirable:
        figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
    if rows:
        figures["rewards/accuracies"] = s.right / rows
        figures["saturated"] = s.saturated / rows
    if s.aux_steps:
        figures["aux_loss"] = s.aux_loss / s.aux_steps
    return figures
