"""TRL's tokenised rows, which bring their mismatched completion along, -> fastkto's micro-batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.errors import InputError

Rows = Sequence[dict[str, Any]]


class TRLCollator:
    """Packs or pads rows as `collator` does, with each row's own `KL_completion_ids` as y'.

    Keys: those of the collator; `ref_logps` and `ref_KL_logps` (B,) where the rows have them; and `input_ids` and
    `attention_mask` (B, L) as `own`, TRL's collator, pads them: for the Trainer's counts of tokens and operations, and
    for an evaluation that asks for logits.
    """

    def __init__(self, collator: PackingCollator | PaddingCollator, own: Callable[[Rows], dict[str, Any]]) -> None:
        self.collator, self.own = collator, own

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """The batch of these rows, in their order."""
        for row in rows:
            if row["label"] not in (True, False):
                fix = "Convert on purpose, e.g. label == 1; -1/1 would all read as true."
                raise InputError("label", row["label"], "True or False", fix)
        batch: dict[str, Any] = {**self.collator(rows)}
        batch.pop("weights", None)  # a column that TRL's loss does not know
        for name in ("ref_logps", "ref_KL_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        padded = self.own(rows)
        return batch | {name: padded[name] for name in ("input_ids", "attention_mask")}
