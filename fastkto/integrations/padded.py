"""A host's padded batch on fastkto's head: what it reads off the logits, without them.

Legend: B rows, L padded length, D hidden, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastkto.head.logprobs import IGNORE_INDEX, TokenStats, module_token_stats, token_logprobs, token_stats
from fastkto.integrations.logit_sums import logit_sums
from fastkto.trunk.modules import Head
from fastkto.trunk.scorer import Scorer


class PaddedScores(NamedTuple):
    """Of a padded batch. Only `logps` carries a gradient."""

    logps: torch.Tensor
    """(B, L - 1) log-probs of `labels[:, 1:]`, nats; 0 where the label is -100."""
    logit_sums: torch.Tensor
    """(B, L) sums of the logits over the vocabulary."""
    aux_loss: torch.Tensor | None
    """A mixture of experts' load-balancing loss, where the model was asked for router logits."""


def padded_scorer(labels: torch.Tensor) -> Scorer:
    """`logits.log_softmax(-1)` gathered at the next label, and `logits.sum(-1)`, for `model(..., scorer=...)`.

    Args:
        labels: (B, L) int64, aligned with the input ids; -100 is not scored. To select the others makes a GPU wait.
    """

    def score(hidden: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> PaddedScores:
        hidden_BLD = hidden[:, -labels.shape[1] :]  # prompt-learning adapters put virtual tokens in front
        next_BL = labels[:, 1:]
        if not head.plain or head.softcap is not None:
            stats = _all_positions(hidden_BLD.flatten(0, 1), head, F.pad(next_BL, (0, 1), value=IGNORE_INDEX).flatten())
            sums_BL = (stats.mean_logits * head.module.out_features).view_as(labels)
            return PaddedScores(stats.logps.view_as(labels)[:, :-1], sums_BL, aux_loss)
        weight, bias = head.module.weight, head.module.bias
        scored_BL = next_BL != IGNORE_INDEX
        hidden_ND, targets = hidden_BLD[:, :-1][scored_BL], next_BL[scored_BL]
        logps_N = token_logprobs(hidden_ND, weight, targets, bias=bias, scale=head.scale)
        logps_BL = logps_N.new_zeros(next_BL.shape).masked_scatter(scored_BL, logps_N)
        return PaddedScores(logps_BL, head.scale * logit_sums(hidden_BLD.detach(), weight, bias), aux_loss)

    return Scorer(score)


def _all_positions(hidden_ND: torch.Tensor, head: Head, targets_N: torch.Tensor) -> TokenStats:
    """For a softcap, an adapter or a quantised head: the sum of its logits is known from the logits only."""
    if not head.plain:
        return module_token_stats(head.module, hidden_ND, targets_N, softcap=head.softcap, scale=head.scale)
    weight, bias = head.module.weight, head.module.bias
    return token_stats(hidden_ND, weight, targets_N, bias=bias, softcap=head.softcap, scale=head.scale)
