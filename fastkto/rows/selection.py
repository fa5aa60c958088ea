"""Which normalised rows are trained on: the part held out for evaluation, and the recipes of the paper.

Every choice is made by the rows' content and a seed, not by their order: a file written in another order gives the
same rows.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.ranges import check_ranges

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Selection:
    """What is chosen of the rows; as it stands, everything."""

    test_split_size: float | None = None
    one_per_prompt: bool = False
    frac_unique_desirable: float | None = None
    frac_unique_undesirable: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_ranges(self)


@dataclass(frozen=True)
class Selected:
    """The rows to train on, those to evaluate on, and a line for each choice that was made."""

    train: "Dataset"
    test: "Dataset | None"
    lines: list[str]


def select(rows: "Dataset", selection: Selection, seed: int) -> Selected:
    """The split first, then the recipes on what is trained on. Errors: `InputError` naming the field."""
    chosen = [name for name, value in vars(selection).items() if value not in (None, False)]
    if chosen and not isinstance(rows, require("datasets", "train").Dataset):
        value = getattr(selection, chosen[0])
        raise InputError(chosen[0], value, "no streaming beside it: all rows are looked at first", "Leave one out.")
    if chosen and "prompt" not in rows.column_names:
        fix = "Leave it out, or choose the rows before they are tokenised."
        raise InputError(chosen[0], getattr(selection, chosen[0]), "text or messages, not rows of token ids", fix)
    test, lines = None, []
    if selection.test_split_size is not None:
        kept, held_out = split_by_prompt(rows, selection.test_split_size, seed)
        rows, test = rows.select(kept), rows.select(held_out)
        lines.append(f"{len(test)} rows held out for evaluation, {len(rows)} left to train on; no prompt is in both")
    if selection.one_per_prompt:
        kept = one_per_prompt(rows, seed)
        lines.append(f"{len(rows) - len(kept)} rows left out by one_per_prompt")
        rows = rows.select(kept)
    for label, name in ((True, "frac_unique_desirable"), (False, "frac_unique_undesirable")):
        if (fraction := getattr(selection, name)) is not None:
            kept = frac_unique(rows, fraction, label, seed)
            lines.append(f"{len(rows) - len(kept)} rows left out by {name}={fraction:g}")
            rows = rows.select(kept)
    return Selected(rows, test, lines)


def split_by_prompt(rows: Rows, size: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the rows to train on and of those held out: about `size` of them (a share below 1, or a number).

    Rows that share a prompt or a conversation stay on one side.
    """
    groups = _groups(rows, seed)
    total = sum(map(len, groups.values()))
    wanted = round(size * total) if size < 1 else int(size)
    if not wanted < total:
        fix = "Give for example 0.1 for a tenth, or 100 for a hundred rows."
        raise InputError("test_split_size", size, f"a share below 1, or a number of rows below {total}", fix)
    if len(groups) < 2:
        fix = "Leave it out, or evaluate on a file of its own."
        raise InputError("test_split_size", size, "rows of at least two prompts to divide; these have one", fix)
    held_out: list[int] = []
    for key in sorted(groups):
        if len(held_out) + len(groups[key]) <= wanted:
            held_out += groups[key]
    if not held_out:
        held_out = min(groups.values(), key=len)
    out = {*held_out}
    return [i for i in range(total) if i not in out], sorted(out)


def one_per_prompt(rows: Rows, seed: int) -> list[int]:
    """Positions of one row a prompt (the paper's one-y-per-x), drawn by content and seed."""
    drawn: dict[bytes, tuple[bytes, int]] = {}
    for i, row in enumerate(rows):
        key = _digest(0, row["prompt"])
        candidate = (_digest(seed, row["prompt"], row["completion"], row["label"]), i)
        drawn[key] = min(drawn.get(key, candidate), candidate)
    return sorted(i for _, i in drawn.values())


def frac_unique(rows: Rows, fraction: float, label: bool, seed: int) -> list[int]:
    """Positions of the rows that stay when `fraction` of the unique examples with `label` is kept.

    An example is a prompt with its answer; rows that repeat one stay or go together. Rows with the other label stay.
    """
    labels, keys = [], []
    for row in rows:
        labels.append(row["label"])
        keys.append(_digest(seed, row["prompt"], row["completion"]))
    unique = sorted({key for key, own in zip(keys, labels, strict=True) if own == label})
    kept = {*unique[: round(fraction * len(unique))]}
    return [i for i, (key, own) in enumerate(zip(keys, labels, strict=True)) if own != label or key in kept]


def _groups(rows: Rows, seed: int) -> dict[bytes, list[int]]:
    """Rows connected by a prompt or a conversation, under the smallest digest of their prompts."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    prompts = []
    for row in rows:
        prompts.append(_digest(seed, row["prompt"]))
        parent[root(row["conversation"])] = root(prompts[-1])
    members: dict[Any, list[int]] = {}
    for i, prompt in enumerate(prompts):
        members.setdefault(root(prompt), []).append(i)
    return {min(prompts[i] for i in group): group for group in members.values()}


def _digest(seed: int, *parts: Any) -> bytes:
    text = json.dumps([seed, *map(_without_nulls, parts)], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _without_nulls(value: Any) -> Any:
    """A message without the keys that another row has and this one lacks."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
