"""One summary of a dataset: how it was read, what is trained on, and every row that is at fault or worth a look."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkto.errors import escaped
from fastkto.rows.shapes.faults import Fault, ReadReport, count_faults
from fastkto.rows.shapes.looking import reports_of

DUPLICATE = "duplicate"
CONTRADICTION = "contradiction"
NOTES = {CONTRADICTION: ", the same answer under both labels: with equal weights they cancel"}
TOO_LONG = "prompt too long"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenReport:
    """What became of the rows when they were tokenised.

    `rows` came and `kept` are left; `dropped` had a prompt that fills max_length, `cut` have a completion cut at
    max_length, and `diverged` have a prompt whose end (`diverged_text` in the first one) is tokenised otherwise before
    a completion than alone. `plain` are text although the model has a chat template. Of the rows that are left
    `desirable` are so, `prompts` have a prompt of their own, `duplicates` repeat an earlier prompt and completion, and
    `contradictions` counts those prompts and completions that have both labels. `faults` are the rows that cannot be
    tokenised, those left out as too long, and those that repeat or contradict others. `weights` are theirs in words,
    empty where all count 1.
    """

    rows: int
    kept: int
    dropped: int
    cut: int
    diverged: int
    diverged_text: str
    plain: int
    prompts: int
    desirable: int
    duplicates: int
    contradictions: int
    faults: tuple[Fault, ...]
    weights: str


@dataclass(frozen=True)
class Summary:
    """What a training takes from its data. `faults` are left out, or kept and only counted, as each says."""

    name: str
    sources: tuple[ReadReport, ...]
    desirable: int
    undesirable: int
    prompts: int
    faults: tuple[Fault, ...]
    weights: str = ""

    def lines(self) -> list[str]:
        """The summary in words: the columns, the rows, then each kind of fault."""
        rows = self.desirable + self.undesirable
        counts = f"{self.desirable} desirable, {self.undesirable} undesirable; {self.prompts} prompts"
        lines = [
            *(f"{report.name}: {line}" for report in self.sources for line in _reading(report)),
            f"{self.name}: {rows} rows to train on, {counts}",
            *([f"{self.name}: weights {self.weights}"] if self.weights else []),
            *(f"{self.name}: {line}" for line in self.fault_lines()),
        ]
        return [*map(escaped, lines)]

    def fault_lines(self) -> list[str]:
        """Each kind of fault, its rows, and what becomes of them."""
        return [f"{fault}{', left out' if fault.left_out else NOTES.get(fault.kind, '')}" for fault in self.faults]


def summary_of(dataset: Any, report: TokenReport, dataset_name: str) -> Summary:
    """All that is known of a dataset: how `normalise` read it, and what became of it when it was tokenised."""
    sources = tuple(reports_of(dataset))
    faults = (*(fault for source in sources for fault in source.faults), *report.faults)
    counts = report.desirable, report.kept - report.desirable, report.prompts
    return Summary(dataset_name, sources, *counts, faults, report.weights)


def weights_line(weights: Sequence[float]) -> str:
    """The weights of the rows in words: "0.2 to 3, mean 1.1; 2 rows with weight 0"; of no rows, nothing."""
    if not weights:
        return ""
    zeros = sum(weight == 0 for weight in weights)
    mean = sum(weights) / len(weights)
    rows = f"{zeros} row{'' if zeros == 1 else 's'} with weight 0"
    return f"{min(weights):.3g} to {max(weights):.3g}, mean {mean:.3g}; {rows}"


def _reading(report: ReadReport) -> list[str]:
    """How a source was read: the reader and what it left out, and the meaning of the columns."""
    read = [f"read as {report.reader}"] if report.reader else []
    return [*read, *(f"left out by the reader: {line}" for line in report.left_out), report.columns]


def repeated(row_ids: Sequence[int], pairs: Sequence[int], labels: Sequence[bool]) -> tuple[Fault, ...]:
    """Rows with a prompt and completion that have both labels, and rows that repeat another's with its label.

    `pairs` are content keys. All are kept: an answer that was liked twice says something, and one that was liked and
    disliked says that people disagree; with equal weights the two cancel.
    """
    labels_of: dict[int, set[bool]] = {}
    for pair, label in zip(pairs, labels, strict=True):
        labels_of.setdefault(pair, set()).add(label)
    seen: set[int] = set()
    kinds = []
    for row, pair in zip(row_ids, pairs, strict=True):
        kinds.append((row, CONTRADICTION if len(labels_of[pair]) > 1 else DUPLICATE if pair in seen else ""))
        seen.add(pair)
    return count_faults(kinds, frozenset())


def log_report(report: TokenReport, max_length: int | None, dataset_name: str) -> None:
    """Warn of rows that are dropped, or are not tokenised as a model sees them at inference."""
    if report.plain:
        logger.warning("%s (%d of %d rows)", plain_warning(dataset_name), report.plain, report.rows)
    if report.diverged:
        logger.warning(
            "%s (%d of %d rows)", diverged_warning(report.diverged_text, dataset_name), report.diverged, report.rows
        )
    if report.dropped:
        text = "%d of %d %s rows dropped: the prompt alone fills max_length=%s"
        logger.warning(text, report.dropped, report.rows, dataset_name, max_length)
    if report.cut:
        text = "%d of %d %s completions are cut at max_length=%s"
        logger.info(text, report.cut, report.rows, dataset_name, max_length)


def diverged_warning(text: str, dataset_name: str) -> str:
    """That a prompt's end (`text` in the first row) is tokenised otherwise before a completion than alone."""
    return (
        f"A prompt of {dataset_name} is tokenised differently alone and before its completion. The completion starts "
        f"where the two diverge, and this end of the prompt is left out: {text!r}. At inference the model will see "
        "it: use a chat template that renders a prompt alike in both cases, or end prompts on a token boundary."
    )


def plain_warning(dataset_name: str) -> str:
    """That text goes past the model's chat template."""
    return (
        f"Rows of {dataset_name} are plain text, and the model has a chat template: they are trained without it, while "
        "a chat at inference goes through it. --chat true makes a user's and an assistant's turn of each."
    )
