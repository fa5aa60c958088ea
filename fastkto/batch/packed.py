"""Tokenised rows -> one packed micro-batch: targets and KL completions in one sequence, each prompt once, no padding.

Legend: B rows, T tokens of a packed sequence, N scored positions.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from fastkto.batch.targets_and_kl import about_rows, row_keys, streams


class PackingCollator:
    """Builds a micro-batch of packed sequences from the rows that `streams` takes; its errors are those of `streams`.

    Keys: `label`, `row_ids`, `weights`, `num_tokens`, `row_keys`, `KL_row_keys` and `cu_seqlens`, `KL_cu_seqlens` over
    all rows, as in `PaddedBatch`; and `sequences`: one dict a forward, rows in order, of at most `max_tokens` tokens (a
    longer row is alone):

    - `input_ids`, `position_ids` (1, T) int64: all [x_i | y_i], then all y'_i at the positions that follow x_i;
    - `logit_index`, `KL_logit_index` (N,) int64: positions in T that predict a scored token (the last of x_i predicts
      the first of y'_i), `targets`, `KL_targets` (N,) those tokens, `cu_seqlens`, `KL_cu_seqlens` their rows' offsets;
    - the fields of a `Layout`.

    `input_ids` (1, all tokens) is for what counts or shows a batch by that name, as Hugging Face's Trainer does.
    """

    def __init__(self, max_length: int | None, *, kl: bool = True, max_tokens: int | None = None) -> None:
        self.max_length, self.kl, self.max_tokens = max_length, kl, max_tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of these rows, in their order."""
        prompt_lengths, targets, kl = streams(rows, self.max_length, kl=self.kl)
        pairs = kl or [[]] * len(rows)
        tails = [ids[start:] for start, ids in zip(prompt_lengths, pairs, strict=True)]
        lengths = [len(a) + len(b) for a, b in zip(targets, tails, strict=True)]
        sequences = [
            _sequence(targets[part], prompt_lengths[part], None if kl is None else tails[part])
            for part in _parts(lengths, self.max_tokens)
        ]
        batch = about_rows(rows, targets) | {"sequences": sequences}
        batch["input_ids"] = torch.cat([sequence["input_ids"] for sequence in sequences], dim=1)
        for prefix, ids in (("", targets), ("KL_", kl)):
            if ids is not None:
                batch[f"{prefix}row_keys"] = row_keys(prompt_lengths, ids)
                batch[f"{prefix}cu_seqlens"] = _joined_cu_seqlens(
                    [sequence[f"{prefix}cu_seqlens"] for sequence in sequences]
                )
        return batch


def padded_targets(batch: dict[str, Any], pad_token_id: int) -> torch.Tensor:
    """(B, L) the ids of each [x_i | y_i] of a packed batch, as a padded one holds them."""
    rows = [
        sequence["input_ids"][0, start:end]
        for sequence in batch["sequences"]
        for start, end in pairwise(sequence["target_cu_seqlens"])
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)


def _joined_cu_seqlens(parts: list[list[int]]) -> list[int]:
    cu_seqlens = [0]
    for part in parts:
        base = cu_seqlens[-1]
        cu_seqlens += [base + end for end in part[1:]]
    return cu_seqlens


def _parts(lengths: list[int], max_tokens: int | None) -> Iterator[slice]:
    """Runs of rows of at most `max_tokens` tokens together; a longer row is a run of its own."""
    start, total = 0, 0
    for row, length in enumerate(lengths):
        if max_tokens is not None and row > start and total + length > max_tokens:
            yield slice(start, row)
            start, total = row, 0
        total += length
    yield slice(start, len(lengths))


def _sequence(cut: list[list[int]], prompt_lengths: list[int], tails: list[list[int]] | None) -> dict[str, Any]:
    ids = [token for row in cut for token in row]
    positions = [i for row in cut for i in range(len(row))]
    target_cu_seqlens = _cu_seqlens(cut)
    stream = _predicting(
        [
            (base + max(start, 1) - 1, row[max(start, 1) :])
            for base, start, row in zip(target_cu_seqlens, prompt_lengths, cut, strict=False)
        ]
    )
    sequence: dict[str, Any] = {**stream, "target_cu_seqlens": target_cu_seqlens, "prompt_lengths": prompt_lengths}
    tail_cu_seqlens = [0] * len(target_cu_seqlens)
    kl_keys: list[list[int]] = [[] for _ in cut]
    if tails is not None:
        tail_cu_seqlens = _cu_seqlens(tails)
        kl_index, kl_targets, kl_cu_seqlens = [], [], [0]
        for row, (tail, start) in enumerate(zip(tails, prompt_lengths, strict=True)):
            first = len(ids) + tail_cu_seqlens[row]
            base = target_cu_seqlens[row]
            before = [base + start - 1] if start else []
            kl_index += before + list(range(first, first + len(tail) - 1))
            kl_targets += tail if start else tail[1:]
            kl_cu_seqlens.append(len(kl_index))
            kl_keys[row] = [*range(base, base + start), *range(first, first + len(tail))]
            positions += range(start, start + len(tail))
        ids = ids + [token for tail in tails for token in tail]
        sequence |= {
            "KL_logit_index": torch.tensor(kl_index, dtype=torch.int64),
            "KL_targets": torch.tensor(kl_targets, dtype=torch.int64),
            "KL_cu_seqlens": kl_cu_seqlens,
        }
    return sequence | {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "tail_cu_seqlens": tail_cu_seqlens,
        "device_target_cu_seqlens": torch.tensor(target_cu_seqlens, dtype=torch.int32),
        "device_tail_cu_seqlens": torch.tensor(tail_cu_seqlens, dtype=torch.int32),
        "device_tail_key_cu_seqlens": torch.tensor(_cu_seqlens(kl_keys), dtype=torch.int32),
        "tail_key_index": torch.tensor([place for keys in kl_keys for place in keys], dtype=torch.int64),
    }


def _predicting(rows: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """Positions that predict, from (first predicting position, tokens it and its followers predict) of each row."""
    index = [first + i for first, tokens in rows for i in range(len(tokens))]
    targets = [token for _, tokens in rows for token in tokens]
    return {
        "logit_index": torch.tensor(index, dtype=torch.int64),
        "targets": torch.tensor(targets, dtype=torch.int64),
        "cu_seqlens": _cu_seqlens([tokens for _, tokens in rows]),
    }


def _cu_seqlens(rows: list[list[int]]) -> list[int]:
    cu_seqlens = [0]
    for row in rows:
        cu_seqlens.append(cu_seqlens[-1] + len(row))
    return cu_seqlens
