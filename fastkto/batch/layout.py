"""Where the rows of a packed sequence lie: all [x_i | y_i] first, then all y'_i."""

from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True)
class Layout:
    """A packed sequence of T = P + T_y + K tokens. The targets never see a KL token: they are a prefix of their own.

    Lists are for the host and tensors for kernels that take their offsets on the device: nothing is read back.
    """

    target_bounds: list[int]
    """B + 1 offsets of the rows [x_i | y_i]."""
    prompt_lengths: list[int]
    """B: how many tokens of each row are its prompt, which its KL row attends to as well."""
    kl_bounds: list[int]
    """B + 1 offsets of the rows y'_i, counted from the end of the targets; all 0 without a KL stream."""
    target_offsets: torch.Tensor
    """`target_bounds`, int32."""
    kl_offsets: torch.Tensor
    """`kl_bounds`, int32."""
    kl_key_offsets: torch.Tensor
    """B + 1 offsets of the rows [x_i | y'_i] that KL queries attend to, int32."""
    kl_key_index: torch.Tensor
    """(P + K,) positions in T of the tokens of those rows, int64."""

    @classmethod
    def of(cls, sequence: dict[str, Any]) -> "Layout":
        """The layout among a packed sequence's keys."""
        return cls(**{each.name: sequence[each.name] for each in fields(cls)})

    @property
    def target_tokens(self) -> int:
        """Tokens that need a gradient; the KL rows come after."""
        return self.target_bounds[-1]

    @property
    def kl_tokens(self) -> int:
        """Tokens of the tail."""
        return self.kl_bounds[-1]

    @property
    def target_lengths(self) -> list[int]:
        """Tokens of each [x_i | y_i]."""
        return [b - a for a, b in pairwise(self.target_bounds)]

    @property
    def kl_lengths(self) -> list[int]:
        """Tokens of each y'_i."""
        return [b - a for a, b in pairwise(self.kl_bounds)]


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
