"""What the rows of a file are, and whether they can be trained on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from fastkto.errors import InputError
from fastkto.pairs.conflicts import check_pairable
from fastkto.rows import RowOptions, normalise
from fastkto.rows.selection import split_by_prompt
from fastkto.rows.tokens import tokenize_with_report

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LEAST_ROWS = 16
HELD_OUT = 0.1
LEAST_HELD_OUT = 8
"""Rows that are worth evaluating on."""
TEXTS = 200
"""Of so many prompts it is asked whether they went through a chat template already."""


class Rows(NamedTuple):
    """Counts of what can be trained on."""

    desirable: int
    undesirable: int
    prompts: int
    lengths: list[int]
    """Tokens of prompt and completion, the shortest first."""
    chat: bool
    """Text that is to become turns of the model's chat template."""
    held_out: int
    """Rows of the part to evaluate on; 0 where the rows are too few to divide."""
    held_out_prompts: int

    @property
    def number(self) -> int:
        """All of them."""
        return len(self.lengths)

    @property
    def trained(self) -> int:
        """Those that are left to train on."""
        return self.number - self.held_out

    def longest(self, share: float) -> int:
        """The length that a share of the rows does not pass."""
        return self.lengths[max(0, ceil(share * self.number) - 1)]


def look(
    dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", options: RowOptions, *, seed: int, source: str
) -> Rows:
    """Read the rows as training would. Errors: those of reading, and `InputError` for too few or one class only."""
    rows = normalise(dataset, options)
    chat = bool(tokenizer.chat_template) and not options.chat and _is_bare_text(rows, tokenizer)
    if chat:
        with _warned_already():
            rows = normalise(dataset, replace(options, chat=True))
    if len(rows) < LEAST_ROWS:
        fix = "Collect more thumbs; some hundreds are a start."
        raise InputError("FILE", f"{source} with {len(rows)} rows", f"at least {LEAST_ROWS} to learn from", fix)
    tokens, report = tokenize_with_report(rows, tokenizer, max_length=None)
    undesirable = report.kept - report.desirable
    if not (report.desirable and undesirable):
        what = "desirable" if report.desirable else "undesirable"
        fix = "KTO learns from the difference: add rows of the other kind, or see what the labels mean (--label_map)."
        raise InputError("FILE", f"{source} with {report.kept} rows, all {what}", "thumbs up and thumbs down", fix)
    check_pairable(tokens["prompt_key"], tokens["conversation"], 2)
    lengths = [len(x) + len(y) for x, y in zip(tokens["prompt_ids"][:], tokens["completion_ids"][:], strict=True)]
    held_out = _held_out(rows, tokens, seed)
    return Rows(
        *(report.desirable, undesirable, report.prompts, sorted(lengths), chat, len(held_out)),
        len({tokens[i]["prompt_key"] for i in held_out}),
    )


def _held_out(rows: "Dataset", tokens: "Dataset", seed: int) -> list[int]:
    """Positions of the part that `test_split_size` would hold out, where both parts can be used; else none."""
    try:
        kept, held_out = split_by_prompt(rows, HELD_OUT, seed)
        for part in (kept, held_out):
            some = tokens.select(part)
            check_pairable(some["prompt_key"], some["conversation"], 2)
    except InputError:
        return []
    labels = tokens["label"]
    both = {labels[i] for i in kept} == {True, False}
    return held_out if both and len(held_out) >= LEAST_HELD_OUT else []


def _is_bare_text(rows: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether prompts are text in which no special token shows that a template was there."""
    prompts = rows.select(range(min(TEXTS, len(rows))))["prompt"]
    marks = {*tokenizer.all_special_tokens}
    return all(isinstance(text, str) and not any(mark in text for mark in marks) for text in prompts)


@contextmanager
def _warned_already() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
