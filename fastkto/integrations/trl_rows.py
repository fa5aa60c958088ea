"""TRL's tokenised rows, which bring their mismatched completion along, -> fastkto's micro-batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastkto.errors import InputError
from fastkto.packing import PackingCollator, _joined, _parts, _sequence
from fastkto.padding import PaddingCollator
from fastkto.streams import streams

Rows = Sequence[dict[str, Any]]
STREAM = ("input_ids", "attention_mask", "completion_mask", "logit_index", "targets", "cu_seqlens")


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
        pairs = [{**row, "completion_ids": row["KL_completion_ids"]} for row in rows] if self.collator.kl else None
        build = _packed if isinstance(self.collator, PackingCollator) else _padded
        batch = build(self.collator, rows, pairs)
        for name in ("ref_logps", "ref_KL_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        padded = self.own(rows)
        return batch | {name: padded[name] for name in ("input_ids", "attention_mask")}


def _packed(collator: Any, rows: Rows, pairs: Rows | None) -> dict[str, Any]:
    starts, targets, _ = streams(rows, collator.max_length, kl=False)
    kl = None if pairs is None else streams(pairs, collator.max_length, kl=False).targets
    tails = [[] for _ in rows] if kl is None else [ids[start:] for start, ids in zip(starts, kl, strict=True)]
    lengths = [len(a) + len(b) for a, b in zip(targets, tails, strict=True)]
    sequences = [
        _sequence(targets[part], starts[part], None if kl is None else tails[part])
        for part in _parts(lengths, collator.max_tokens)
    ]
    return {
        "label": torch.tensor([bool(row["label"]) for row in rows]),
        "num_tokens": sum(map(len, targets)),
        "sequences": sequences,
        **{
            f"{prefix}cu_seqlens": _joined([sequence[f"{prefix}cu_seqlens"] for sequence in sequences])
            for prefix in ("", "KL_")[: 1 + (kl is not None)]
        },
    }


def _padded(collator: Any, rows: Rows, pairs: Rows | None) -> dict[str, Any]:
    plain = PaddingCollator(
        collator.pad_token_id, collator.max_length, kl=False, pad_to_multiple_of=collator.pad_to_multiple_of
    )
    batch: dict[str, Any] = {**plain(rows)}
    if pairs is not None:
        batch |= {f"KL_{name}": value for name, value in plain(pairs).items() if name in STREAM}
    return batch
