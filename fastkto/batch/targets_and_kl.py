"""Rows of a micro-batch -> their two streams of token ids: targets [x_i | y_i] and mismatched pairs [x_i | y'_i]."""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fastkto.errors import InputError
from fastkto.losses.kto import check_rows_to_pair
from fastkto.pairs import pair
from fastkto.rows.tokens import prompt_key


class Streams(NamedTuple):
    """Ids of every row, cut at max_length from the right; `prompt_lengths` tells where the completions start."""

    prompt_lengths: list[int]
    targets: list[list[int]]
    kl: list[list[int]] | None


def streams(rows: Sequence[dict[str, Any]], max_length: int | None, *, kl: bool) -> Streams:
    """The streams of rows with prompt_ids, completion_ids and, where known, conversation and prompt_key (else every row
    is its own conversation and the prompt's ids are its key).

    A row's `KL_completion_ids` are its y'; without them the pairs are `pair`'s. Errors: `InputError` for an empty
    batch, a prompt that fills `max_length`, and, with `kl`, a batch that cannot be paired, such as one of a single row.
    """
    if not rows:
        raise InputError("rows", rows, "at least one row", "Pass the rows of a micro-batch.")
    prompts = [list(row["prompt_ids"]) for row in rows]
    completions = [list(row["completion_ids"]) for row in rows]
    targets = _cut(prompts, completions, max_length)
    pairs = None
    if kl:
        if "KL_completion_ids" in rows[0]:
            mismatched = [list(row["KL_completion_ids"]) for row in rows]
        else:
            mismatched = [completions[donor] for donor in _donors(rows, prompts)]
        pairs = _cut(prompts, mismatched, max_length)
    return Streams([len(prompt) for prompt in prompts], targets, pairs)


def about_rows(rows: Sequence[dict[str, Any]], targets: list[list[int]]) -> dict[str, Any]:
    """What a batch says of its rows: `label`, `row_ids`, `num_tokens`, and `weights` where the rows have one each."""
    about: dict[str, Any] = {
        "label": torch.tensor([bool(row["label"]) for row in rows]),
        "row_ids": torch.tensor([row.get("row_id", i) for i, row in enumerate(rows)]),
        "num_tokens": sum(map(len, targets)),
    }
    if "weight" in rows[0]:
        about["weights"] = [float(row["weight"]) for row in rows]
    return about


def weight_of(batch: dict[str, Any]) -> float:
    """The weights of a batch's rows added up; without weights their number."""
    return sum(batch["weights"]) if "weights" in batch else len(batch["label"])


def row_key(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> bytes:
    """A 16-byte content key of a pair: blake2b over the prompt's length, its ids and the completion's ids."""
    ids = (len(prompt_ids), *prompt_ids, *completion_ids)
    return hashlib.blake2b(struct.pack(f"<{len(ids)}q", *ids), digest_size=16).digest()


def row_keys(prompt_lengths: list[int], ids: list[list[int]]) -> list[bytes]:
    """`row_key` of every row of a stream."""
    return [row_key(row[:start], row[start:]) for start, row in zip(prompt_lengths, ids, strict=True)]


def _donors(rows: Sequence[dict[str, Any]], prompts: list[list[int]]) -> list[int]:
    check_rows_to_pair("rows of a micro-batch", len(rows))
    keys = [row.get("prompt_key", prompt_key(prompt)) for row, prompt in zip(rows, prompts, strict=True)]
    return pair(keys, [row.get("conversation", -1 - i) for i, row in enumerate(rows)])


def _cut(prompts: list[list[int]], completions: list[list[int]], max_length: int | None) -> list[list[int]]:
    cut = [(x + y)[:max_length] for x, y in zip(prompts, completions, strict=True)]
    for x, ids in zip(prompts, cut, strict=True):
        if len(ids) <= len(x):
            raise InputError(
                "max_length",
                max_length,
                f"more than a prompt of {len(x)} tokens, and completions of at least one",
                "`tokenize` drops such rows: give the collator the max_length that it was given.",
            )
    return cut
