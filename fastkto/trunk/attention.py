"""Attention of a packed sequence, registered with transformers: stock models run it unpatched.

Targets are causal on themselves. A KL row's queries see its prompt's keys and values, which the target row computed,
and its own, causally. No T x T mask is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from fastkto.batch.layout import Part
from fastkto.trunk import segments, varlen
from fastkto.trunk.segments import Scores

NAME = "fastkto_packed"

# Keywords that reach an attention function and do not change its result here
_WITHOUT_EFFECT = {
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


class CannotPack(Exception):
    """A model asks its attention for something that the packed one does not do."""


@contextmanager
def packed_attention(config: Any) -> Iterator[None]:
    """Inside the block the model of this config attends by `packed` keyword; outside, and in `generate`, as always."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    packed: Part | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """`softmax(q k^T * scaling) v` within each row of `packed`; q, k, v (1, heads, tokens, d) -> (1, T, heads, d).

    Keyword arguments are those that transformers hands to every attention function; one that is not understood is
    refused.
    """
    name = type(module).__name__
    if packed is None:
        raise CannotPack(f"{name} attends outside of the layers, or does not get their keyword arguments")
    unknown = {key for key, argument in rest.items() if argument is not None and key not in _WITHOUT_EFFECT}
    if unknown or attention_mask is not None:
        raise CannotPack(f"{name} needs {sorted(unknown) or 'its own mask'} in its attention")
    if not getattr(module, "is_causal", True) or (rest.get("is_causal") is False and query.shape[2] > 1):
        raise CannotPack(f"{name} attends in both directions")
    if query.shape[0] != 1:
        raise CannotPack(f"{name} attends to a batch of {query.shape[0]}, a packed one has 1")
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings leave them in float32
    targets = None
    if packed.tail:
        if not packed.stash.kept:
            raise CannotPack(f"{name} attends more often to KL rows than to targets")
        targets = packed.stash.kept.pop(0)
    elif packed.stash.open:
        packed.stash.kept.append((key.detach(), value.detach()))
    scores = Scores(scaling, dropout, sliding_window, softcap)
    attend = varlen.attend if varlen.applies(query, value, scores) else segments.attend
    return attend(query, key, value, targets, packed.layout, scores).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
