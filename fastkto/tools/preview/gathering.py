"""What would be trained on, without training: gathered for a person to judge, and printed by `fastkto data`."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastkto.batch import PaddingCollator
from fastkto.batch.targets_and_kl import row_key
from fastkto.errors import InputError, escaped, require
from fastkto.pairs import PairableSampler, pair
from fastkto.pairs.balance import (
    ONE_CLASS_LIMIT,
    SHUFFLED,
    auto_desirable_weight,
    batch_size_for,
    obeys_rule,
    one_class_share,
    one_class_share_of,
    weight_range,
)
from fastkto.rows import RowOptions
from fastkto.rows.normalise import label_ties, normalise_the_good
from fastkto.rows.readers import read_dataset, say
from fastkto.rows.shapes.decision import COUNTED
from fastkto.rows.shapes.looking import reports_of
from fastkto.rows.shapes.summary import Summary, TokenReport, summary_of
from fastkto.rows.tokens import tokenize_the_good
from fastkto.tools.preview.example import Example, example, render_example

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from fastkto.rows.selection import Selected

PERCENTILES = (0, 10, 50, 90, 99, 100)
STREAM_ROWS = 1000
SAMPLES = 4
SOURCES = 12


class Untrainable(InputError):
    """The data does not train; `summary` holds every fault that was found, and not only the first."""

    def __init__(self, error: InputError, summary: Summary) -> None:
        super().__init__(error.argument, error.value, error.expected, error.fix)
        self.summary = summary


@dataclass(frozen=True)
class Preview:
    """What training would see. Lengths are in tokens, before the cut at `max_length`; shares are of micro-batches."""

    source: int
    streamed: bool
    summary: Summary
    report: TokenReport
    max_length: int | None
    desirable: int
    undesirable: int
    ties: int | None
    prompt_lengths: list[int]
    completion_lengths: list[int]
    prompts: int
    duplicates: int
    contradictions: int
    batch_size: int
    refilled: int
    one_class: float
    batch_size_that_fits: int | None
    desirable_weight: float
    undesirable_weight: float
    examples: list[Example]
    """The first three rows."""
    chosen: list[str]
    """What was held out or left out by a recipe."""
    by_source: list[tuple[str, int, int]]
    """Desirable and undesirable rows of each source, where the rows say where they come from."""
    opposed: list[Example]
    """Some of the rows whose answer stands under both labels."""
    of_each_label: list[Example]


def preview(
    dataset: "Dataset | IterableDataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    batch_size: int,
    options: RowOptions | None = None,
    desirable_weight: float | str = 1.0,
    undesirable_weight: float = 1.0,
    kl: bool = True,
    strategy: str = "random",
    seed: int = 42,
    world_size: int = 1,
    num_proc: int | None = None,
    chat_template: str | None = None,
    choose: "Callable[[Dataset], Selected] | None" = None,
) -> Preview:
    """Takes `dataset` (as `read_rows` gives it) through the code that training runs, and describes the result.

    It reads, tokenises, orders and pairs a whole epoch and builds a batch, so a dataset that passes here trains with
    the same arguments. Of a stream the first `STREAM_ROWS` rows are taken. `kl` is False for losses without a KL term.
    `choose` picks from the rows once they are read, as training does.
    Errors: those of `normalise`, `tokenize`, `PairableSampler` and `PaddingCollator`.
    """
    options = options or RowOptions()
    datasets = require("datasets", "train")
    reading = None
    if options.reader is not None:
        dataset, options, reading = read_dataset(dataset, options)
        if reading is None:
            say(reading, "train")
    streamed = isinstance(dataset, datasets.IterableDataset)
    if streamed:
        dataset = datasets.Dataset.from_list(list(dataset.take(STREAM_ROWS)), features=dataset.features)
    normalised, refused = normalise_the_good(dataset, options, reading=reading)
    if len(normalised) == 0 and refused is not None:
        sources = tuple(reports_of(normalised))
        faults = tuple(fault for source in sources for fault in source.faults)
        raise Untrainable(refused, Summary("train", sources, 0, 0, 0, faults))
    chosen = []
    if choose is not None and refused is None:
        selected = choose(normalised)
        normalised, chosen = selected.train, selected.lines
    rows, report, failed = tokenize_the_good(
        normalised, tokenizer, max_length=max_length, num_proc=num_proc, chat_template=chat_template
    )
    summary = summary_of(normalised, report, "train")
    if (error := refused or failed) is not None:
        raise Untrainable(error, summary)
    labels, keys, conversations = (rows[name][:] for name in ("label", "prompt_key", "conversation"))
    prompts, completions = (_lengths(rows, name) for name in ("prompt_ids", "completion_ids"))
    lengths = [x + y for x, y in zip(prompts, completions, strict=True)]
    sampler = PairableSampler(
        keys,
        conversations,
        labels,
        batch_size,
        strategy=strategy,
        lengths=lengths,
        seed=seed,
        world_size=world_size,
        kl=kl,
    )
    order = list(sampler)
    for start in range(0, len(order) if kl else 0, batch_size):
        batch = order[start : start + batch_size]
        pair([keys[i] for i in batch], [conversations[i] for i in batch])
    PaddingCollator(0, max_length, kl=kl)([rows[i] for i in order[:batch_size]])
    desirable, undesirable = summary.desirable, summary.undesirable
    if desirable_weight == "auto":
        desirable_weight = auto_desirable_weight(desirable, undesirable, undesirable_weight)

    def shown(positions: Iterable[int]) -> list[Example]:
        word = "row" if reading is None else "record"
        return [
            example(row, tokenizer, max_length, f"{word} {row['row_id']}") for row in map(rows.__getitem__, positions)
        ]

    has_scores = options.label_threshold is not None
    return Preview(
        source=len(dataset) if reading is None else reading.records,
        streamed=streamed,
        summary=summary,
        report=report,
        max_length=max_length,
        desirable=desirable,
        undesirable=undesirable,
        ties=label_ties(dataset, options) if has_scores else None,
        prompt_lengths=_percentiles(prompts),
        completion_lengths=_percentiles(completions),
        prompts=report.prompts,
        duplicates=report.duplicates,
        contradictions=report.contradictions,
        batch_size=batch_size,
        refilled=sampler.refilled,
        one_class=one_class_share(desirable, undesirable, batch_size)
        if strategy in SHUFFLED
        else one_class_share_of(order, labels, batch_size),
        batch_size_that_fits=batch_size_for(desirable, undesirable),
        desirable_weight=float(desirable_weight),
        undesirable_weight=undesirable_weight,
        examples=shown(range(min(3, len(rows)))),
        chosen=chosen,
        by_source=_by_source(dataset, conversations, labels),
        opposed=shown(_under_both_labels(rows, labels)[:SAMPLES]) if report.contradictions else [],
        of_each_label=shown([i for label in (True, False) for i in _first(labels, label, SAMPLES)]),
    )


def render(preview: Preview) -> str:
    """The preview as plain text, scored tokens in «»."""
    p, report = preview, preview.report
    lines = [line for one in p.examples for line in (*render_example(one), "")]
    first = "first " if p.streamed else ""
    for source in p.summary.sources:
        lines += [f"reader       {source.reader}"] if source.reader else []
        lines.append(f"columns      {source.columns}")
    lines += [
        f"rows         {report.kept} to train on, from {first}{p.source} in the source; {p.prompts} prompts",
        f"labels       {p.desirable} desirable, {p.undesirable} undesirable",
    ]
    lines += [f"row weights  {p.summary.weights}"] if p.summary.weights else []
    if len(p.by_source) > 1:
        lines += [f"  of         {name}: {good} desirable, {bad} undesirable" for name, good, bad in p.by_source]
    lines += [f"left out     {line}" for source in p.summary.sources for line in source.left_out]
    lines += [f"chosen       {line}" for line in p.chosen]
    if p.ties is not None:
        lines.append(f"ties         {p.ties} at the threshold, read as desirable")
    header = "".join(f"{percent_name(q):>8}" for q in PERCENTILES)
    lines += [
        f"tokens       {header}",
        "  prompt     " + "".join(f"{n:>8}" for n in p.prompt_lengths),
        "  completion " + "".join(f"{n:>8}" for n in p.completion_lengths),
        f"dropped      {report.dropped} rows whose prompt fills max_length={p.max_length}",
        f"cut          {report.cut} completions at max_length={p.max_length}",
    ]
    if report.diverged:
        text = f"{report.diverged} prompts are tokenised differently before a completion"
        lines.append(f"diverged     {text}; left out: {report.diverged_text!r}")
    lines += [f"faults       {line}" for line in p.summary.fault_lines()]
    contradictions = f" ({p.contradictions} of them with both labels)" if p.contradictions else ""
    lines += [
        f"duplicates   {p.duplicates} rows repeat another's prompt and completion{contradictions}",
        f"refilled     {p.refilled} rows are seen twice an epoch, so that every micro-batch can be paired",
        f"one class    {p.one_class:.1%} of micro-batches of {p.batch_size} are expected to hold one class{_remedy(p)}",
        f"weights      {weights(p)}",
    ]
    return "\n".join(map(escaped, lines))


def _remedy(preview: Preview) -> str:
    if preview.one_class <= ONE_CLASS_LIMIT:
        return ""
    if preview.batch_size_that_fits is None:
        return "; add rows of the other class"
    rarer = min(preview.desirable, preview.undesirable) / (preview.desirable + preview.undesirable)
    stratified = "train_sampling_strategy=stratified, or " if preview.batch_size * rarer >= 1 else ""
    return f"; {stratified}batches of {preview.batch_size_that_fits} bring it below {ONE_CLASS_LIMIT:.0%}"


def weights(preview: Preview) -> str:
    """The class weights, and whether they obey the paper's rule."""
    n = (preview.desirable, preview.undesirable)
    if not all(n):
        return "one class only: no weight balances it"
    low, high = weight_range(*n, preview.undesirable_weight)
    value = f"desirable_weight={preview.desirable_weight:g}, undesirable_weight={preview.undesirable_weight:g}"
    if obeys_rule(*n, preview.desirable_weight, preview.undesirable_weight):
        return f"{value}: inside the paper's rule"
    return f"{value}: outside the paper's rule; desirable_weight from {low:.3g} to {high:.3g} fits"


def _under_both_labels(rows: "Dataset", labels: Sequence[bool]) -> list[int]:
    """Positions of the first row of each label for every answer that stands under both, one answer after another."""
    seen: dict[Hashable, dict[bool, int]] = {}
    for i, row in enumerate(rows.select_columns(["prompt_ids", "completion_ids"])):
        seen.setdefault(row_key(row["prompt_ids"], row["completion_ids"]), {}).setdefault(labels[i], i)
    return [i for first in seen.values() if len(first) > 1 for i in first.values()]


def _by_source(dataset: "Dataset", places: list[int], labels: list[bool]) -> list[tuple[str, int, int]]:
    """Counts by the text in the column `source`, the largest first; a row without one counts as "not said".

    `places` are the positions in `dataset` of the rows that are trained on.
    """
    if COUNTED not in dataset.column_names or "prompt_ids" in dataset.column_names:
        return []
    names = dataset[COUNTED][:]
    counts: dict[str, list[int]] = {}
    for place, label in zip(places, labels, strict=True):
        counts.setdefault(str(names[place] or "not said"), [0, 0])[not label] += 1
    ordered = sorted(counts.items(), key=lambda item: -sum(item[1]))
    rest = [count for _, count in ordered[SOURCES:]]
    named = [(name, good, bad) for name, (good, bad) in ordered[:SOURCES]]
    return [*named, ("others", sum(good for good, _ in rest), sum(bad for _, bad in rest))] if rest else named


def _first(labels: list[bool], label: bool, count: int) -> list[int]:
    return [i for i, own in enumerate(labels) if own == label][:count]


def _lengths(rows: "Dataset", column: str) -> list[int]:
    return [len(ids) for batch in rows.select_columns([column]).iter(1000) for ids in batch[column]]


def _percentiles(values: Sequence[int]) -> list[int]:
    """Nearest-rank percentiles."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in PERCENTILES]


def percent_name(q: int) -> str:
    """How a percentile is headed."""
    return {0: "min", 50: "median", 100: "max"}.get(q, f"{q}%")
