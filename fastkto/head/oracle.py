"""The oracle: materialised logits, plain PyTorch, one line an equation. Every backend is compared with it.

Legend: N scored positions, D hidden, V vocabulary, B rows.
"""

import itertools
from typing import Any

import torch

from fastkto.losses.kto import KTOLoss, kto_loss


def logits(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Head logits (N, V), eq. (1): `softcap * tanh(scale * (h W^T + b) / softcap)`."""
    z_NV = hidden_ND @ weight_VD.T
    if bias is not None:
        z_NV = z_NV + bias
    z_NV = z_NV * scale
    return z_NV if softcap is None else softcap * torch.tanh(z_NV / softcap)


def token_logprobs(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Log-prob of each target token (N,), eq. (1); a target of -100 gives 0."""
    z_NV = logits(hidden_ND, weight_VD, bias=bias, softcap=softcap, scale=scale)
    ignored_N = targets_N == -100
    z_target_N = z_NV.gather(1, targets_N.masked_fill(ignored_N, 0)[:, None])[:, 0]
    return (z_target_N - z_NV.logsumexp(1)).masked_fill(ignored_N, 0.0)


def token_entropy(z_NV: torch.Tensor) -> torch.Tensor:
    """Entropy of the next-token distribution (N,), in nats: `-(p * log p).sum(1)`."""
    logp_NV = z_NV.log_softmax(1)
    return -(logp_NV.exp() * logp_NV).sum(1)


def row_sums(logps_N: torch.Tensor, cu_seqlens: list[int]) -> torch.Tensor:
    """Sums over each row's tokens (B,): `logps[cu_seqlens[i]:cu_seqlens[i + 1]].sum()`."""
    sizes = [end - start for start, end in itertools.pairwise(cu_seqlens)]
    return torch.stack([part.sum() for part in logps_N.split(sizes)])


def linear_kto(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    cu_seqlens: list[int],
    labels_B: torch.Tensor,
    ref_logps_B: torch.Tensor,
    *,
    kl_hidden: torch.Tensor | None = None,
    kl_targets: torch.Tensor | None = None,
    kl_cu_seqlens: list[int] | None = None,
    ref_kl_logps: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    **loss: Any,
) -> KTOLoss:
    """Hidden states to KTO loss through full logits: equations (1) to (6) in a row. `loss`: keywords of `kto_loss`."""
    head: dict[str, Any] = {"bias": bias, "softcap": softcap, "scale": scale}
    logps_B = row_sums(token_logprobs(hidden_ND, weight_VD, targets_N, **head), cu_seqlens)
    kl_logps_B = None
    if kl_hidden is not None and kl_targets is not None and kl_cu_seqlens is not None:
        with torch.no_grad():
            kl_logps_B = row_sums(token_logprobs(kl_hidden, weight_VD, kl_targets, **head), kl_cu_seqlens)
    return kto_loss(logps_B, ref_logps_B, labels_B, kl_logps=kl_logps_B, ref_kl_logps=ref_kl_logps, **loss)
