"""NEFTune's noise on the embeddings, as wide as each row's own length asks: alpha / sqrt(tokens * hidden size).

transformers' hook takes the length of the whole call, which packed is that of all rows together, and padded that of
the longest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastkto.batch.layout import Layout


@contextmanager
def noise_by_row(base: Any, lengths: Any) -> Iterator[None]:
    """Inside the block the noise that training asked for, if any, goes by `lengths()`: the tokens of the row of each
    place, in a tensor that broadcasts to (B, T)."""
    marked = [x for x in base.modules() if vars(x).get("neftune_noise_alpha") and x.training] if base.training else []
    if not marked:
        yield
        return
    (embedding,) = marked
    alpha = embedding.neftune_noise_alpha
    widths = alpha / lengths().to(embedding.weight.device).clamp(min=1)[..., None].sqrt()

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * (widths / output.shape[-1] ** 0.5).to(output.dtype)

    embedding.neftune_noise_alpha = 0.0  # for transformers' own hook
    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
        embedding.neftune_noise_alpha = alpha


def packed_lengths(layout: Layout) -> torch.Tensor:
    """(1, T) tokens of [x_i | y_i], and behind them of [x_i | y'_i]. A prompt is one and its noise is [x_i | y_i]'s."""
    tails = [x + y for x, y in zip(layout.prompt_lengths, layout.kl_lengths, strict=True)]
    per_row = torch.tensor([*layout.target_lengths, *tails], dtype=torch.float32)
    return per_row.repeat_interleave(torch.tensor([*layout.target_lengths, *layout.kl_lengths]))[None]
