"""Feedback signals as booleans: true/false, a map of words, or a score with a threshold."""

import functools
import logging
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastkto.errors import InputError


@functools.cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log `message` as a warning, the first time only."""
    logger.warning(message)


@dataclass(frozen=True)
class LabelReader:
    """Reads a cell as desirable (True) or not: as what it says, through `mapping`, or `cell >= threshold`.

    Errors: `InputError` naming the row for a cell that none of these covers.
    """

    mapping: Mapping[str, bool] | None = None
    threshold: float | None = None

    def __call__(self, cell: Any, where: str) -> bool:
        """The label of `cell`; `where` names the row and column in the error."""
        if self.threshold is not None:
            if isinstance(cell, bool) or not isinstance(cell, int | float) or math.isnan(cell):
                raise InputError(where, cell, "a score", "label_threshold needs a number in every row.")
            return cell >= self.threshold
        if self.mapping is not None:
            label = self.mapping.get(_word(cell))
            if label is None:
                known = ", ".join(f"{word}={str(value).lower()}" for word, value in self.mapping.items())
                raise InputError(where, cell, f"one of the label_map ({known})", "Add it to --label_map.")
            return label
        label = as_bool(cell)
        if label is None:
            raise InputError(
                where,
                cell,
                "true, false, 1 or 0",
                "Say what it means with --label_map WORD=true WORD=false, or --label_threshold for scores.",
            )
        return label


def label_reader(label_map: Mapping[Any, Any] | Iterable[str] | None, threshold: float | None) -> LabelReader:
    """The reader for `RowOptions.label_map` (a dict, or strings "up=true") and `RowOptions.label_threshold`."""
    if not label_map:
        return LabelReader(threshold=threshold)
    if threshold is not None:
        raise InputError("label_map", label_map, "no label_threshold beside it", "Choose one of the two.")
    pairs = label_map.items() if isinstance(label_map, Mapping) else map(_split, label_map)
    mapping: dict[str, bool] = {}
    for word, meaning in pairs:
        label = {"1": True, "0": False}.get(str(meaning), as_bool(meaning))
        if label is None:
            raise InputError("label_map", f"{word}={meaning}", "WORD=true or WORD=false", "Correct this entry.")
        if mapping.setdefault(_word(word), label) != label:
            raise InputError("label_map", label_map, f"one meaning for {word!r}", "Remove one of the two entries.")
    return LabelReader(mapping=mapping)


def as_bool(cell: Any) -> bool | None:
    """What a cell says: booleans, 0/1 and the words true/false in any case; None for anything else."""
    if isinstance(cell, str):
        return {"true": True, "false": False}.get(cell.strip().lower())
    return {1: True, 0: False}.get(cell) if isinstance(cell, Hashable) else None  # type: ignore[call-overload]


def _word(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    return f"{cell:g}" if isinstance(cell, float) else str(cell).strip()


def _split(entry: str) -> tuple[str, str]:
    word, equals, meaning = entry.rpartition("=")
    if not equals:
        raise InputError(
            "label_map", entry, "WORD=true or WORD=false", "Write for example --label_map up=true down=false."
        )
    return word, meaning
