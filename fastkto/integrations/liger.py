"""`FusedLinearKTOLoss`: the KTO loss class of liger-kernel 0.8.5, its arguments and results, on fastkto's head.

Needs no liger-kernel. Legend: B rows, T positions, D hidden, V vocabulary, N scored positions.
"""

import itertools
from typing import Any

import torch
from torch import nn

from fastkto.errors import InputError
from fastkto.head import fused_linear_kto, token_logprobs
from fastkto.integrations.logit_sums import logit_sums
from fastkto.losses.kto import kto_loss

Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class FusedLinearKTOLoss(nn.Module):
    """`(weight * sigmoid(-beta * (r - kl) * sign)).sum() / B`, r from hidden states and LM heads, no logits in memory.

    Args:
        ignore_index: target of a position that is not scored (prompt, padding).
        beta: sensitivity to the log-ratio, per nat.
        compiled: accepted and of no effect: nothing here is compiled.
        use_ref_model: score `ref_input` too; without it and without `ref_logps`, r is the policy's log-prob alone.
        average_log_prob: r of the mean over a row's scored positions, not of their sum.
        chunk_size: accepted and of no effect: the head's tiles are cut across rows.
        desirable_weight: lambda_D, an addition of fastkto.
        undesirable_weight: lambda_U, an addition of fastkto.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compiled: bool = True,
        use_ref_model: bool = False,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        *,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.beta = beta
        self.compiled = compiled
        self.use_ref_model = use_ref_model
        self.average_log_prob = average_log_prob
        self.chunk_size = chunk_size
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight

    def forward(
        self,
        _input: torch.Tensor,
        lin_weight: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None = None,
        preference_labels: torch.Tensor | None = None,
        ref_input: torch.Tensor | None = None,
        ref_weight: torch.Tensor | None = None,
        ref_bias: torch.Tensor | None = None,
        kl: torch.Tensor | float | None = None,
        *,
        ref_logps: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Sums]:
        """Loss with a graph to `_input`, `lin_weight` and `bias`; six sums without one.

        Args:
            _input: (B, T, D) hidden states, shifted so that position t predicts `target[:, t]`.
            lin_weight: (V, D) of the LM head.
            target: (B, T) int64, `ignore_index` where nothing is scored. Counting the others makes a GPU wait once.
            bias: (V,) or None.
            preference_labels: (B,) bool, True for a desirable row.
            ref_input, ref_weight, ref_bias: the same of the reference model, read with `use_ref_model`.
            kl: the reference point of the batch in nats, one number; taken as it is, neither clamped nor
                differentiated. None is 0.
            ref_logps: (B,) log-probs under the reference, cached: sums, or means with `average_log_prob`. In place
                of `ref_input` and `ref_weight`; an addition of fastkto.

        Returns:
            `(loss, (chosen_logps_sum, rejected_logps_sum, chosen_logits_sum, rejected_logits_sum,
            chosen_rewards_sum, rejected_rewards_sum))`, float32 (float64 for float64 inputs). The sums of logits
            run over all positions, scored or not, as liger-kernel's do.

        Raises:
            ValueError: shapes or dtypes that do not fit, a `kl` of several numbers, a reference given twice or not
                at all, a row without a scored position under `average_log_prob`.
        """
        labels = _checked(_input, target, preference_labels)
        scored_BT = target != self.ignore_index
        counts: list[int] = scored_BT.sum(1).tolist()
        cu_seqlens = [0, *itertools.accumulate(counts)]
        targets = target[scored_BT]
        if self.average_log_prob and 0 in counts:
            value = f"row {counts.index(0)} with no scored position"
            raise InputError("target", value, "at least one, to average over", "Drop the row.")

        def logps_of(hidden: torch.Tensor, weight: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
            rows = token_logprobs(hidden[scored_BT], weight, targets, bias=b).split(counts)
            sums_B = torch.stack([row.sum() for row in rows])
            return sums_B / sums_B.new_tensor(counts) if self.average_log_prob else sums_B

        if ref_logps is not None:
            ref_logps = _cached(ref_logps, ref_input, len(labels))
        elif self.use_ref_model:
            with torch.no_grad():
                ref_logps = logps_of(*_reference(ref_input, ref_weight), ref_bias)
        else:
            ref_logps = torch.zeros(len(labels), device=_input.device)
        # a reference point that is known beforehand shifts every reference log-prob; what is left has z0 = 0
        shifted = ref_logps + _reference_point(kl)
        loss: dict[str, Any] = {
            "beta": self.beta,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
            "loss_type": "apo_zero_unpaired",
        }
        out: Any
        if self.average_log_prob:
            logps = logps_of(_input, lin_weight, bias)
            out = kto_loss(logps, shifted, labels, **loss)
        else:
            hidden = _input[scored_BT]
            out = fused_linear_kto(hidden, lin_weight, targets, cu_seqlens, labels, shifted, bias=bias, **loss)
            logps = out.logps
        with torch.no_grad():
            rewards = self.beta * (logps - ref_logps)
            logits = logit_sums(_input, lin_weight, bias).sum(1)
            pairs = [_by_label(x, labels) for x in (logps.detach(), logits, rewards)]
        return out.loss, (*pairs[0], *pairs[1], *pairs[2])


def _by_label(x_B: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.where(labels, x_B, 0).sum(), torch.where(labels, 0, x_B).sum()


def _reference_point(kl: torch.Tensor | float | None) -> torch.Tensor | float:
    if not isinstance(kl, torch.Tensor):
        return 0.0 if kl is None else kl
    if kl.numel() != 1:
        expected = "one number, the reference point of the whole batch"
        raise InputError("kl", f"shape {tuple(kl.shape)}", expected, "Pass e.g. kl.mean().clamp(min=0).")
    return kl.detach().reshape(())


def _reference(ref_input: torch.Tensor | None, ref_weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if ref_input is None or ref_weight is None:
        fix = "Pass both, or ref_logps, or construct with use_ref_model=False."
        raise InputError("ref_input and ref_weight", None, "those of the reference model, for use_ref_model", fix)
    return ref_input, ref_weight


def _cached(ref_logps: torch.Tensor, ref_input: torch.Tensor | None, rows: int) -> torch.Tensor:
    if ref_input is not None:
        raise InputError("ref_logps", "given beside ref_input", "one reference", "Leave one of the two out.")
    if ref_logps.shape != (rows,):
        raise InputError("ref_logps", tuple(ref_logps.shape), f"({rows},), one per row", "Pass one log-prob per row.")
    return ref_logps.detach()


def _checked(hidden: torch.Tensor, target: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    if hidden.ndim != 3:
        raise InputError("_input", tuple(hidden.shape), "three dimensions (B, T, D)", "Do not flatten the rows.")
    if target.shape != hidden.shape[:2]:
        fix = "Shift both: _input[:, :-1] predicts target[:, 1:]."
        raise InputError("target", tuple(target.shape), f"{tuple(hidden.shape[:2])}, a target per position", fix)
    if labels is None or labels.dtype != torch.bool or labels.shape != hidden.shape[:1]:
        value = None if labels is None else (tuple(labels.shape), labels.dtype)
        fix = "Convert on purpose, e.g. labels == 1; -1/1 would all read as true."
        raise InputError("preference_labels", value, f"bool of shape ({hidden.shape[0]},)", fix)
    return labels
