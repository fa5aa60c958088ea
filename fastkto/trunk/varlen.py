"""Packed attention in one call of `torch.nn.attention.varlen`, which is flash attention on CUDA in half precision."""

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from fastkto.batch import Layout
from fastkto.trunk.segments import Scores

_TAKES = inspect.signature(varlen_attn).parameters.keys()
SERVES = {"scale", "window_size"} <= _TAKES
"""Whether this torch's kernel has what we need of it."""
_GROUPS = "enable_gqa" in _TAKES  # not in torch 2.11, where every query head needs a key head of its own


def serves(device: torch.device) -> bool:
    """Whether the kernel runs there, in half precision."""
    return SERVES and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def applies(query: torch.Tensor, value: torch.Tensor, scores: Scores) -> bool:
    """Whether the kernel takes these tensors and computes these scores."""
    width = query.shape[-1]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and serves(query.device)
        and width == value.shape[-1]
        and width % 8 == 0
        and width <= 256
        and scores.dropout == 0.0
        and scores.softcap is None
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    targets: tuple[torch.Tensor, torch.Tensor] | None,
    layout: Layout,
    scores: Scores,
) -> torch.Tensor:
    """As `segments.attend`. The kernel aligns queries with the last of the keys, which KL rows rely on."""
    lengths = key_lengths = layout.target_lengths
    cu_seqlens = key_cu_seqlens = layout.device_target_cu_seqlens
    if targets is not None:
        lengths = layout.kl_lengths
        cu_seqlens, key_cu_seqlens = layout.device_tail_cu_seqlens, layout.device_tail_key_cu_seqlens
        key_lengths = [a + b for a, b in zip(layout.prompt_lengths, lengths, strict=True)]
        key, value = (
            torch.cat([x, y], dim=2).index_select(2, layout.tail_key_index)
            for x, y in zip(targets, (key, value), strict=True)
        )
    groups = query.shape[1] // key.shape[1]
    more: dict[str, Any] = {}
    if _GROUPS:
        more["enable_gqa"] = groups > 1
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    q_TJD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    out_TJD: Any = varlen_attn(
        q_TJD,
        k_THD,
        v_THD,
        cu_seqlens,
        key_cu_seqlens,
        max(lengths),
        max(key_lengths),
        scale=scores.scaling,
        window_size=(-1 if scores.window is None else scores.window - 1, 0),
        **more,
    )
    result: torch.Tensor = out_TJD.transpose(0, 1)[None]
    return result
