"""Feedback signals as booleans: true/false, a map of words, a score with a threshold or a band; weights."""

import functools
import logging
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastkto.errors import InputError
from fastkto.rows.shapes.faults import BETWEEN, NEGATIVE_WEIGHT, NO_LABEL, NO_WEIGHT, NOT_A_WEIGHT, Unusable

LARGEST_WEIGHT = 3.4e38  # of float32, as which weights enter the loss


@functools.cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log `message` as a warning, the first time only."""
    logger.warning(message)


@dataclass(frozen=True)
class LabelReader:
    """Reads a cell as desirable (True) or not: as what it says, through `mapping`, `cell >= threshold`, or by a `band`
    (at most its first number: undesirable, at least its second: desirable).

    Errors: `Unusable` naming the row for a cell that none of these covers.
    """

    mapping: Mapping[str, bool] | None = None
    threshold: float | None = None
    band: tuple[float, float] | None = None

    def __call__(self, cell: Any, where: str) -> bool:
        """The label of `cell`; `where` names the row and column in the error."""
        if is_missing(cell):
            fix = "The cell is empty: rate the row, or leave out all such rows with --on_unrated drop."
            raise Unusable(where, cell, "a label (words get a meaning by --label_map)", fix, NO_LABEL)
        if self.threshold is not None or self.band is not None:
            return self._by_score(cell, where)
        if self.mapping is not None:
            label = self.mapping.get(_word(cell))
            if label is None and (number := as_number(cell)) is not None:
                label = self.mapping.get(_word(number))
            if label is None:
                known = ", ".join(f"{word}={str(value).lower()}" for word, value in self.mapping.items())
                raise Unusable(where, cell, f"one of the label_map ({known})", "Add it to --label_map.")
            return label
        label = as_bool(cell)
        if label is None:
            raise Unusable(
                where,
                cell,
                "true, false, 1 or 0",
                "Say what it means with --label_map WORD=true WORD=false, or --label_threshold for scores.",
            )
        return label

    def _by_score(self, cell: Any, where: str) -> bool:
        score = None if isinstance(cell, bool) else as_number(cell)
        if score is None:
            option = "label_band" if self.threshold is None else "label_threshold"
            raise Unusable(where, cell, "a score", f"{option} needs a number in every row.")
        if self.threshold is not None:
            return score >= self.threshold
        low, high = self.band or (0.0, 0.0)
        if low < score < high:
            fix = "Rows between the two are left out."
            raise Unusable(where, cell, f"a score of at most {low:g} or at least {high:g}", fix, BETWEEN)
        return score >= high


def label_reader(
    label_map: Mapping[Any, Any] | Iterable[str] | None,
    threshold: float | None,
    band: Iterable[float] | None = None,
) -> LabelReader:
    """The reader for `RowOptions.label_map` (a dict, or strings "up=true"), `label_threshold` and `label_band`."""
    given = {"label_map": label_map or None, "label_threshold": threshold, "label_band": band}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(names[0], given[names[0]], f"no {names[1]} beside it", "Choose one of the two.")
    if band is not None:
        limits = tuple(float(limit) for limit in band)
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise InputError("label_band", list(limits), "two numbers, the lower first", "Write --label_band 2 4.")
        return LabelReader(band=(limits[0], limits[1]))
    if not label_map:
        return LabelReader(threshold=threshold)
    pairs = label_map.items() if isinstance(label_map, Mapping) else map(_split, label_map)
    mapping: dict[str, bool] = {}
    for word, meaning in pairs:
        label = as_bool(meaning)
        if label is None:
            raise InputError("label_map", f"{word}={meaning}", "WORD=true or WORD=false", "Correct this entry.")
        if mapping.setdefault(_word(word), label) != label:
            raise InputError("label_map", label_map, f"one meaning for {word!r}", "Remove one of the two entries.")
    return LabelReader(mapping=mapping)


def read_weight(cell: Any, where: str) -> float:
    """How much a row counts: a number from 0 on, also as text. Errors: `Unusable` naming the row and column."""
    fix = "1 counts the row once, 0 leaves it out of the loss."
    if is_missing(cell):
        raise Unusable(where, cell, "a weight", f"The cell is empty: {fix}", NO_WEIGHT)
    weight = None if isinstance(cell, bool) else as_number(cell)
    if weight is None or weight > LARGEST_WEIGHT:
        raise Unusable(where, cell, "a number", fix, NOT_A_WEIGHT)
    if weight < 0:
        raise Unusable(where, cell, "a number from 0 on", fix, NEGATIVE_WEIGHT)
    return weight


def as_bool(cell: Any) -> bool | None:
    """What a cell says: booleans, 0 and 1, as numbers or text, and true/false in any case; None for anything else."""
    if isinstance(cell, str):
        word = cell.strip().lower()
        return {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}.get(word)
    return {1: True, 0: False}.get(cell) if isinstance(cell, Hashable) else None  # type: ignore[call-overload]


def as_number(cell: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if not isinstance(cell, int | float | str):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: null, not a number, or no text."""
    return (
        cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())
    )


def _word(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _split(entry: str) -> tuple[str, str]:
    word, equals, meaning = entry.rpartition("=")
    if not equals:
        raise InputError(
            "label_map", entry, "WORD=true or WORD=false", "Write for example --label_map up=true down=false."
        )
    return word, meaning
