"""Where the rows of a packed sequence lie: all [x_i | y_i] first, then all y'_i."""

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True)
class Layout:
    """A packed sequence of T = P + T_y + K tokens. The targets never see a KL token: they are a prefix of their own.

    `cu_seqlens` are the offsets of rows, from 0 to the number of tokens: lists for the host, `device_` tensors for
    kernels, so that nothing is read back. The tail is that of the KL rows.
    """

    target_cu_seqlens: list[int]
    """B + 1 offsets of the rows [x_i | y_i]."""
    prompt_lengths: list[int]
    """B: how many tokens of each row are its prompt, which its KL row attends to as well."""
    tail_cu_seqlens: list[int]
    """B + 1 offsets of the rows y'_i, counted from the end of the targets; all 0 without a KL stream."""
    device_target_cu_seqlens: torch.Tensor
    """`target_cu_seqlens`, int32."""
    device_tail_cu_seqlens: torch.Tensor
    """`tail_cu_seqlens`, int32."""
    device_tail_key_cu_seqlens: torch.Tensor
    """B + 1 offsets of the rows [x_i | y'_i] that KL queries attend to, int32."""
    tail_key_index: torch.Tensor
    """(P + K,) positions in T of the tokens of those rows, int64."""

    @classmethod
    def of(cls, sequence: dict[str, Any]) -> "Layout":
        """The layout among a packed sequence's keys."""
        return cls(**{each.name: sequence[each.name] for each in fields(cls)})

    @property
    def target_tokens(self) -> int:
        """Tokens that need a gradient; the KL rows come after."""
        return self.target_cu_seqlens[-1]

    @property
    def kl_tokens(self) -> int:
        """Tokens of the tail."""
        return self.tail_cu_seqlens[-1]

    @property
    def target_lengths(self) -> list[int]:
        """Tokens of each [x_i | y_i]."""
        return [b - a for a, b in pairwise(self.target_cu_seqlens)]

    @property
    def kl_lengths(self) -> list[int]:
        """Tokens of each y'_i."""
        return [b - a for a, b in pairwise(self.tail_cu_seqlens)]


@dataclass
class Stash:
    """Keys and values of the targets in each attention of one layer, in order, until its KL rows have used them."""

    open: bool = True
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """What a call of the attention covers: the targets, or the tail of KL rows behind stashed targets."""

    layout: Layout
    tail: bool
    stash: Stash
