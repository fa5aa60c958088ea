"""What a reader leaves out: why, how often, and in which records first."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Record = dict[str, Any]
Numbered = tuple[int, Record]
"""A row, and the number of the record that it comes from."""
SHOWN = 3
KINDS = 12


class LeftOut(Exception):
    """A record that is no row to train on; the message says why, and counts as one kind with those of its text."""


class Tally:
    """Counts by kind, with the numbers of the first records of each (from 0, as they stand in the file)."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, list[int]] = {}

    def add(self, kind: str, record: int) -> None:
        """Count one."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        first = self.first.setdefault(kind, [])
        if len(first) < SHOWN and record not in first:
            first.append(record)

    def lines(self) -> list[str]:
        """One line a kind, the most frequent first; many rare kinds are summed up in the last."""
        kinds = sorted(self.counts, key=lambda kind: -self.counts[kind])
        lines = [f"{self.counts[kind]} {kind} ({self._where(kind)})" for kind in kinds[:KINDS]]
        rest = sum(self.counts[kind] for kind in kinds[KINDS:])
        return [*lines, f"{rest} for {len(kinds) - KINDS} other reasons"] if rest else lines

    def _where(self, kind: str) -> str:
        first = self.first[kind]
        more = ", ..." if self.counts[kind] > len(first) else ""
        return f"record{'s' if len(first) > 1 else ''} {', '.join(map(str, first))}{more}"


def one_by_one(records: Iterable[Record], parse: Callable[[Record], Record], tally: Tally) -> Iterator[Numbered]:
    """`parse` of every record; what it leaves out is counted."""
    for number, record in enumerate(records):
        try:
            yield number, parse(record)
        except LeftOut as reason:
            tally.add(str(reason), number)
