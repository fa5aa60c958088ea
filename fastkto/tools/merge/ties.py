"""Head and embedding that share one weight: what is added to one may not be for the other."""

from typing import Any

import torch
from torch import nn


def untie(model: Any) -> bool:
    """Give the head a weight of its own where head or embedding is adapted; whether it got one."""
    base = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = any(type(module).__module__.startswith("peft.") for module in (head, embedding))
    if not (base.config.tie_word_embeddings and adapted):
        return False
    inner = head
    while type(inner).__module__.startswith("peft."):
        inner = getattr(inner, "base_layer", None) or inner.original_module
    inner.weight = nn.Parameter(inner.weight.detach().clone())
    base.config.tie_word_embeddings = False
    return True


def tie_again(merged: Any) -> None:
    """One weight where both got the same sum, up to the order of its additions."""
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    if torch.allclose(head.weight, embedding.weight, rtol=1e-5, atol=1e-7):
        merged.config.tie_word_embeddings = True
        merged.tie_weights()
