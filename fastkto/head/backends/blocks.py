"""Rows and their positions: blocks of whole rows, and a row's value at each of its positions."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch


def spread(x_B: torch.Tensor, cu_seqlens: Sequence[int]) -> torch.Tensor:
    """Each row's value at each of its positions (N,); the sizes are host integers, so nothing waits."""
    sizes = [end - start for start, end in pairwise(cu_seqlens)]
    return torch.cat([value.expand(size) for value, size in zip(x_B.unbind(), sizes, strict=True)])


def row_blocks(cu_seqlens: Sequence[int], positions: int) -> Iterator[tuple[int, int]]:
    """Runs of rows [first, last) of at most `positions` positions; a longer row is a block of its own."""
    first, rows = 0, len(cu_seqlens) - 1
    while first < rows:
        last = first + 1
        while last < rows and cu_seqlens[last + 1] - cu_seqlens[first] <= positions:
            last += 1
        yield first, last
        first = last


def largest_block(cu_seqlens: Sequence[int], positions: int) -> int:
    """Positions of the largest of `row_blocks` that is not a row too long to be kept."""
    sizes = [cu_seqlens[last] - cu_seqlens[first] for first, last in row_blocks(cu_seqlens, positions)]
    return max((size for size in sizes if size <= positions), default=0)
