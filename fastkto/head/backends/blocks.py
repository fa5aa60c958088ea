"""Rows and their positions: blocks of whole rows, and a row's value at each of its positions."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from fastkto.head.backends.base import Coefficients, HeadInputs


def spread(x_B: torch.Tensor, cu_seqlens: Sequence[int]) -> torch.Tensor:
    """Each row's value at each of its positions (N,); the sizes are host integers, so nothing waits."""
    sizes = [end - start for start, end in pairwise(cu_seqlens)]
    return torch.cat([value.expand(size) for value, size in zip(x_B.unbind(), sizes, strict=True)])


class RowBlock(NamedTuple):
    """A run of whole rows."""

    rows: slice
    positions: slice
    cu_seqlens: Sequence[int]
    """Of these rows, among the positions of all."""
    fits: bool
    """False for a row that alone is longer than a block may be: its logits are not to be kept."""

    @property
    def size(self) -> int:
        """Positions in it."""
        return self.positions.stop - self.positions.start

    def upstream(self, coefficients: Coefficients, logps_N: torch.Tensor, head: HeadInputs) -> torch.Tensor:
        """d loss / d logp at each of its positions (N,), 0 where ignored; `logps_N` and `head` are the block's."""
        grad_B = coefficients(self.rows, logps_N, self.cu_seqlens).to(head.sum_dtype)
        return spread(grad_B, self.cu_seqlens).masked_fill(head.ignored_N, 0.0)


def row_blocks(cu_seqlens: Sequence[int], most: int) -> list[RowBlock]:
    """Rows in blocks of at most `most` positions; a longer row is a block of its own."""
    blocks: list[RowBlock] = []
    first, rows = 0, len(cu_seqlens) - 1
    while first < rows:
        last = first + 1
        while last < rows and cu_seqlens[last + 1] - cu_seqlens[first] <= most:
            last += 1
        part = slice(cu_seqlens[first], cu_seqlens[last])
        blocks.append(RowBlock(slice(first, last), part, cu_seqlens[first : last + 1], part.stop - part.start <= most))
        first = last
    return blocks


def all_rows(cu_seqlens: Sequence[int]) -> RowBlock:
    """Every row in one block."""
    return RowBlock(slice(0, len(cu_seqlens) - 1), slice(cu_seqlens[0], cu_seqlens[-1]), cu_seqlens, fits=True)


def most_positions(block_bytes: int, head: HeadInputs, dtype: torch.dtype) -> int:
    """How many positions a block may have whose logits, in this dtype, are to take at most so many bytes."""
    return max(1, block_bytes // (dtype.itemsize * head.weight_VD.shape[0]))


def largest_block(cu_seqlens: Sequence[int], most: int) -> int:
    """Positions of the largest of `row_blocks` that is not a row too long to be kept."""
    return max((block.size for block in row_blocks(cu_seqlens, most) if block.fits), default=0)
