"""Rows that cannot be trained on: what is wrong with each, and all of them counted by kind."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from fastkto.errors import InputError

NO_LABEL = "no label"
NO_ANSWER = "no answer"
NO_PROMPT = "no prompt"
ONE_ANSWER = "pair without two answers"
NO_WEIGHT = "no weight"
NEGATIVE_WEIGHT = "weight below 0"
NOT_A_WEIGHT = "weight not a finite number"
BETWEEN = "between the limits of label_band"
UNREADABLE = "not understood"
NO_TOKEN = "no token to score"
UNRENDERABLE = "refused by the chat template"
FIRST = 3


class Unusable(InputError):
    """One row cannot be trained on; `kind` is that of its fault."""

    def __init__(self, argument: str, value: object, expected: str, fix: str, kind: str = UNREADABLE) -> None:
        super().__init__(argument, value, expected, fix)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str, str]]:  # type: ignore[override]
        """Survive the trip from a worker process."""
        return type(self), (self.argument, self.value, self.expected, self.fix, self.kind)


@dataclass(frozen=True)
class Fault:
    """All rows with one kind of fault: how many, the numbers of the first three, and whether they are left out."""

    kind: str
    rows: int
    first: tuple[int, ...]
    left_out: bool

    def __str__(self) -> str:
        plural = "s" if self.rows > 1 else ""
        more = ", ..." if self.rows > len(self.first) else ""
        return f"{self.kind}: {self.rows} row{plural} ({', '.join(map(str, self.first))}{more})"


def count_faults(kinds: Iterable[tuple[int, str]], left_out: frozenset[str]) -> tuple[Fault, ...]:
    """Faults by kind, the most common first, from (row number, kind); an empty kind is no fault."""
    rows: dict[str, list[int]] = {}
    for row, kind in kinds:
        if kind:
            rows.setdefault(kind, []).append(row)
    counted = [Fault(kind, len(found), tuple(found[:FIRST]), kind in left_out) for kind, found in rows.items()]
    return tuple(sorted(counted, key=lambda fault: -fault.rows))


def with_all(first: InputError, faults: Sequence[Fault]) -> InputError:
    """The error of the first row that is at fault, which also names the faults of all others."""
    if sum(fault.rows for fault in faults) == 1:
        return first
    kinds = "; ".join(map(str, faults))
    return InputError(first.argument, first.value, first.expected, f"{first.fix} All that is wrong: {kinds}.")


@dataclass(frozen=True)
class ReadReport:
    """How a source was read: the meaning of its columns in words, how many rows it has, and those at fault.

    `reader` took its records, where one did, and what it left out is in `left_out`, a line a kind.
    """

    name: str
    columns: str
    source: int
    faults: tuple[Fault, ...]
    reader: str | None = None
    left_out: tuple[str, ...] = ()


def report_text(report: ReadReport) -> str:
    """A report as one line of text, which travels with the rows."""
    return json.dumps(asdict(report))


def report_from(text: str) -> ReadReport:
    """The report that `report_text` wrote."""
    values = json.loads(text)
    faults = tuple(Fault(**fault | {"first": tuple(fault["first"])}) for fault in values.pop("faults"))
    return ReadReport(**values | {"left_out": tuple(values["left_out"])}, faults=faults)
