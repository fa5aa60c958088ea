"""Tokenised rows -> one packed micro-batch: targets and KL completions in one sequence, each prompt once, no padding.

Legend: B rows, T tokens of a packed sequence, N scored positions.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastkto.batch.targets_and_kl import row_keys, streams


class PackingCollator:
    """Builds a micro-batch of packed sequences from the rows that `streams` takes; its errors are those of `streams`.

    Keys: `label`, `row_ids`, `row_keys`, `KL_row_keys` and `cu_seqlens`, `KL_cu_seqlens` over all rows, as in
    `PaddedBatch`; `num_tokens`, an int; and `sequences`: one dict a forward, rows in order, of at most
    `max_tokens` tokens (a longer row is alone):

    - `input_ids`, `position_ids` (1, T) int64: all [x_i | y_i], then all y'_i at the positions that follow x_i;
    - `logit_index`, `KL_logit_index` (N,) int64: positions in T that predict a scored token (the last of x_i predicts
      the first of y'_i), `targets`, `KL_targets` (N,) those tokens, `cu_seqlens`, `KL_cu_seqlens` their rows' offsets;
    - the fields of a `Layout`.
    """

    def __init__(self, max_length: int | None, *, kl: bool = True, max_tokens: int | None = None) -> None:
        self.max_length, self.kl, self.max_tokens = max_length, kl, max_tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of these rows, in their order."""
        starts, targets, kl = streams(rows, self.max_length, kl=self.kl)
        tails = [[] for _ in rows] if kl is None else [ids[start:] for start, ids in zip(starts, kl, strict=True)]
        lengths = [len(a) + len(b) for a, b in zip(targets, tails, strict=True)]
        sequences = [
            _sequence(targets[part], starts[part], None if kl is None else tails[part])
            for part in _parts(lengths, self.max_tokens)
        ]
        batch = {
            "label": torch.tensor([bool(row["label"]) for row in rows]),
            "row_ids": torch.tensor([row.get("row_id", i) for i, row in enumerate(rows)]),
            "num_tokens": sum(map(len, targets)),
            "sequences": sequences,
        }
        for prefix, ids in (("", targets), ("KL_", kl)):
            if ids is not None:
                batch[f"{prefix}row_keys"] = row_keys(starts, ids)
                batch[f"{prefix}cu_seqlens"] = _joined_cu_seqlens(
                    [sequence[f"{prefix}cu_seqlens"] for sequence in sequences]
                )
        return batch


def _joined_cu_seqlens(parts: list[list[int]]) -> list[int]:
    offsets = [0]
    for part in parts:
        base = offsets[-1]
        offsets += [base + end for end in part[1:]]
    return offsets


def _parts(lengths: list[int], max_tokens: int | None) -> Iterator[slice]:
    """Runs of rows of at most `max_tokens` tokens together; a longer row is a run of its own."""
    start, total = 0, 0
    for row, length in enumerate(lengths):
        if max_tokens is not None and row > start and total + length > max_tokens:
            yield slice(start, row)
            start, total = row, 0
        total += length
    yield slice(start, len(lengths))


def _sequence(cut: list[list[int]], starts: list[int], tails: list[list[int]] | None) -> dict[str, Any]:
    ids = [token for row in cut for token in row]
    positions = [i for row in cut for i in range(len(row))]
    bounds = _offsets(cut)
    stream = _predicting(
        [
            (base + max(start, 1) - 1, row[max(start, 1) :])
            for base, start, row in zip(bounds, starts, cut, strict=False)
        ]
    )
    sequence: dict[str, Any] = {**stream, "target_bounds": bounds, "prompt_lengths": starts}
    kl_bounds = [0] * len(bounds)
    kl_keys: list[list[int]] = [[] for _ in cut]
    if tails is not None:
        kl_bounds = _offsets(tails)
        kl_index, kl_targets, kl_offsets = [], [], [0]
        for row, (tail, start) in enumerate(zip(tails, starts, strict=True)):
            first = len(ids) + kl_bounds[row]
            before = [bounds[row] + start - 1] if start else []
            kl_index += before + list(range(first, first + len(tail) - 1))
            kl_targets += tail if start else tail[1:]
            kl_offsets.append(len(kl_index))
            kl_keys[row] = [*range(bounds[row], bounds[row] + start), *range(first, first + len(tail))]
            positions += range(start, start + len(tail))
        ids = ids + [token for tail in tails for token in tail]
        sequence |= {
            "KL_logit_index": torch.tensor(kl_index, dtype=torch.int64),
            "KL_targets": torch.tensor(kl_targets, dtype=torch.int64),
            "KL_cu_seqlens": kl_offsets,
        }
    return sequence | {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "kl_bounds": kl_bounds,
        "target_offsets": torch.tensor(bounds, dtype=torch.int32),
        "kl_offsets": torch.tensor(kl_bounds, dtype=torch.int32),
        "kl_key_offsets": torch.tensor(_offsets(kl_keys), dtype=torch.int32),
        "kl_key_index": torch.tensor([place for keys in kl_keys for place in keys], dtype=torch.int64),
    }


def _predicting(rows: list[tuple[int, list[int]]]) -> dict[str, Any]:
    """Positions that predict, from (first predicting position, tokens it and its followers predict) of each row."""
    index = [first + i for first, tokens in rows for i in range(len(tokens))]
    targets = [token for _, tokens in rows for token in tokens]
    return {
        "logit_index": torch.tensor(index, dtype=torch.int64),
        "targets": torch.tensor(targets, dtype=torch.int64),
        "cu_seqlens": _offsets([tokens for _, tokens in rows]),
    }


def _offsets(rows: list[list[int]]) -> list[int]:
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    return offsets
