"""Tokenised rows -> a padded micro-batch with its mismatched pairs and the positions that the head scores.

Legend: B rows, L tokens of the longest row, N scored positions.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch

from fastkto.batch.targets_and_kl import about_rows, row_keys, streams


class PaddedBatch(TypedDict, total=False):
    """The keys of a batch. Tensors travel to the device; Python lists stay on the host, so reading them never syncs.

    Keys of the KL stream ([x_i | y'_i]) carry the prefix `KL_` and have their own L and N; without KL they are absent.
    """

    input_ids: torch.Tensor
    """(B, L) int64, [prompt | completion] cut at max_length, padded on the right."""
    attention_mask: torch.Tensor
    """(B, L) int64, 1 on tokens, 0 on padding."""
    logit_index: torch.Tensor
    """(N,) int64, flat positions in (B * L) that predict a completion token: those one to its left in the same row."""
    targets: torch.Tensor
    """(N,) int64, the tokens that they predict."""
    cu_seqlens: list[int]
    """B + 1 offsets of the rows in N, from 0 to N; on the host."""
    row_keys: list[bytes]
    """16 bytes per row, a content key of (prompt ids, completion ids) as cut; on the host."""
    label: torch.Tensor
    """(B,) bool, True for desirable."""
    row_ids: torch.Tensor
    """(B,) int64, position of the row in its source."""
    weights: list[float]
    """B: how much each row counts in the loss; absent where all count 1. No tensor: DeepSpeed would cast it."""
    num_tokens: int
    """Tokens of the targets, padding not counted; on the host."""
    row_lengths: list[int]
    """B: tokens of each row, where the rows run one by one, without padding; on the host."""
    KL_input_ids: torch.Tensor
    KL_attention_mask: torch.Tensor
    KL_logit_index: torch.Tensor
    KL_targets: torch.Tensor
    KL_cu_seqlens: list[int]
    KL_row_keys: list[bytes]
    KL_row_lengths: list[int]


class PaddingCollator:
    """Builds a `PaddedBatch` from the rows that `streams` takes; its errors are those of `streams`.

    The first token of a row has no position to its left: after an empty prompt it is not scored. `one_by_one`: each
    row is to run in a forward of its own, for models that would let it depend on the others' lengths.
    """

    def __init__(
        self,
        pad_token_id: int,
        max_length: int | None,
        *,
        kl: bool = True,
        pad_to_multiple_of: int | None = None,
        one_by_one: bool = False,
    ) -> None:
        self.pad_token_id, self.max_length = pad_token_id, max_length
        self.kl, self.pad_to_multiple_of, self.one_by_one = kl, pad_to_multiple_of, one_by_one

    def __call__(self, rows: Sequence[dict[str, Any]]) -> PaddedBatch:
        """The batch of these rows, in their order."""
        prompt_lengths, targets, kl = streams(rows, self.max_length, kl=self.kl)
        batch = self._stream("", prompt_lengths, targets)
        if kl is not None:
            batch |= self._stream("KL_", prompt_lengths, kl)
        return batch | about_rows(rows, targets)  # type: ignore[return-value]

    def _stream(self, prefix: str, prompt_lengths: list[int], rows: list[list[int]]) -> dict[str, Any]:
        """One stream of [prompt | completion] rows and what the head needs of it."""
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(map(len, rows)) // multiple) * multiple
        ids_BL = torch.full((len(rows), length), self.pad_token_id)
        attention_BL = torch.zeros_like(ids_BL)
        index: list[int] = []
        targets: list[int] = []
        cu_seqlens = [0]
        for row, (ids, start) in enumerate(zip(rows, prompt_lengths, strict=True)):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            attention_BL[row, : len(ids)] = 1
            first = max(start, 1)
            index += range(row * length + first - 1, row * length + len(ids) - 1)
            targets += ids[first:]
            cu_seqlens.append(len(index))
        one_by_one = {f"{prefix}row_lengths": [len(ids) for ids in rows]} if self.one_by_one else {}
        return one_by_one | {
            f"{prefix}input_ids": ids_BL,
            f"{prefix}attention_mask": attention_BL,
            f"{prefix}logit_index": torch.tensor(index, dtype=torch.int64),
            f"{prefix}targets": torch.tensor(targets, dtype=torch.int64),
            f"{prefix}cu_seqlens": cu_seqlens,
            f"{prefix}row_keys": row_keys(prompt_lengths, rows),
        }
