"""Floating-point operations of a step, counted from its batch and the model's config (Llama-shaped models).

Legend: P prompt, T target and K KL completion tokens; N scored positions, D hidden, V vocabulary.
"""

from itertools import pairwise
from typing import Any, NamedTuple


class Passes(NamedTuple):
    """How often a system runs which tokens through the layers, and scored positions through the head.

    A backward counts for two forwards. With checkpointing a forward, the recompute and the backward are four.
    """

    forwards: int
    """Of [x | y], the recompute among them."""
    backwards: int
    kl_forwards: int
    head: int
    """Products with the LM head for each target position."""


PASSES = {
    "fastkto": Passes(forwards=3, backwards=1, kl_forwards=2, head=4),
    "fastkto-cached": Passes(forwards=2, backwards=1, kl_forwards=1, head=3),
    "sft": Passes(forwards=2, backwards=1, kl_forwards=0, head=3),
}


def linear_shapes(config: Any) -> list[tuple[int, int]]:
    """(in, out) of the products with a weight in one layer."""
    d, heads, width = config.hidden_size, config.num_attention_heads, config.intermediate_size
    size = getattr(config, "head_dim", None) or d // heads
    q, kv = heads * size, config.num_key_value_heads * size
    return [(d, q), (d, kv), (d, kv), (q, d), (d, width), (d, width), (width, d)]


def flops(system: str, config: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Operations of one step by part, two to a multiply-add."""
    passes = PASSES[system]
    totals = {"layers": 0.0, "attention": 0.0, "head": 0.0}
    weights = sum(a * b for a, b in linear_shapes(config)) * config.num_hidden_layers
    for sequence in batch["sequences"]:
        targets = _lengths(sequence["target_cu_seqlens"])
        kl = _lengths(sequence["tail_cu_seqlens"])
        kl_keys = [p + k for p, k in zip(sequence["prompt_lengths"], kl, strict=True)]
        token_passes = (passes.forwards + 2 * passes.backwards) * sum(targets) + passes.kl_forwards * sum(kl)
        totals["layers"] += 2 * weights * token_passes
        # two products a forward; five in the backward, which forms the scores again
        products = 2 * passes.forwards + 5 * passes.backwards
        scores = products * _scores(config, targets, targets) + 2 * passes.kl_forwards * _scores(config, kl, kl_keys)
        totals["attention"] += 2 * config.num_hidden_layers * scores
        positions = passes.head * len(sequence["targets"]) + passes.kl_forwards * len(sequence.get("KL_targets", ()))
        totals["head"] += 2 * config.hidden_size * config.vocab_size * positions
    return totals


def _lengths(bounds: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(bounds)]


def _scores(config: Any, queries: list[int], keys: list[int]) -> float:
    """Pairs of a query and a key that it may see, times the width of all heads."""
    d, heads = config.hidden_size, config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or d // heads)
    return sum(q * (k - q) + q * (q + 1) / 2 for q, k in zip(queries, keys, strict=True)) * width
