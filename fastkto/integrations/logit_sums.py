"""Sums of logits over the vocabulary, which hosts log, for a linear head. Legend: D hidden, V vocabulary."""

import torch


def logit_sums(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`(hidden @ weight.T + bias).sum(-1)`, (..., D) to (...), without the logits: the sums change places."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.no_grad():
        weight_D = torch.stack([part.sum(0, dtype=dtype) for part in weight.split(8192)]).sum(0)  # no cast copy of W
        sums = (hidden * weight_D).sum(-1)
        return sums if bias is None else sums + bias.sum(dtype=dtype)
