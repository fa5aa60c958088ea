"""Packed attention one row at a time, by `scaled_dot_product_attention`: any device, dtype, dropout and softcap."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastkto.batch import Layout


class Scores(NamedTuple):
    """What an attention does between the products of queries, keys and values."""

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    """A key is seen by queries less than this many positions behind it."""
    softcap: float | None = None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    targets: tuple[torch.Tensor, torch.Tensor] | None,
    layout: Layout,
    scores: Scores,
) -> torch.Tensor:
    """Rows of the targets, or those of the tail where `targets` holds the targets' keys and values.

    q, k, v (1, heads, tokens, d), -> the shape of q with v's d.
    """
    rows = _target_rows(query, key, value, layout)
    if targets is not None:
        rows = _kl_rows(query, (key, value), targets, layout)
    return torch.cat([_row(*x, scores) for x in rows], dim=2)


Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _target_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> Iterator[Row]:
    """(q, k, v) of every [x_i | y_i]. `split`: its backward is one cat."""
    q, k, v = (x.split(layout.target_lengths, dim=2) for x in (query, key, value))
    yield from zip(q, k, v, strict=True)


def _kl_rows(
    query: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    targets: tuple[torch.Tensor, torch.Tensor],
    layout: Layout,
) -> Iterator[Row]:
    """(q, k, v) of every y'_i, whose keys and values are those of [x_i | y'_i]."""
    tails = [x.split(layout.kl_lengths, dim=2) for x in own]
    prompts = [x.split(layout.target_lengths, dim=2) for x in targets]
    for i, q in enumerate(query.split(layout.kl_lengths, dim=2)):
        prompt = slice(0, layout.prompt_lengths[i])
        k, v = (torch.cat([x[i][:, :, prompt], y[i]], dim=2) for x, y in zip(prompts, tails, strict=True))
        yield q, k, v


def _row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Causal attention of the last queries of one row over all of its keys (bottom-right aligned)."""
    queries, keys = query.shape[2], key.shape[2]
    windowed = scores.window is not None and keys > scores.window
    if scores.softcap is not None:
        return _softcapped(query, key, value, scores, scores.softcap)
    square = queries == keys and not windowed
    unmasked = square or (queries == 1 and not windowed)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if unmasked else _mask(queries, keys, scores.window, query.device),
        dropout_p=scores.dropout,
        is_causal=square and queries > 1,
        scale=scores.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _softcapped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores, softcap: float
) -> torch.Tensor:
    """The eager path: scores capped before the mask and softmax in float32, as the stock models do."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    z = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scores.scaling is None else scores.scaling)
    z = softcap * torch.tanh(z / softcap)
    mask = _mask(query.shape[2], key.shape[2], scores.window, query.device)
    weights = z.masked_fill(~mask, torch.finfo(z.dtype).min).softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, p=scores.dropout, training=scores.dropout > 0) @ value


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(queries, keys): True where a key is at or before its query, and less than `window` positions behind."""
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    mask = behind >= 0
    return mask if window is None else mask & (behind < window)
