"""What would be trained on, without training: the text that `fastkto data` prints."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastkto.batch import PaddingCollator
from fastkto.batch.targets_and_kl import row_key
from fastkto.errors import require
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
from fastkto.rows import RowOptions, normalise
from fastkto.rows.normalise import label_ties
from fastkto.rows.tokens import TokenReport, tokenize_with_report

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (0, 10, 50, 90, 99, 100)
STREAM_ROWS = 1000
SHOWN = 24


@dataclass(frozen=True)
class Example:
    """One row as the model will see it: its tokens, and which of them are scored."""

    row_id: int
    label: bool
    tokens: list[str]
    scored: list[bool]


@dataclass(frozen=True)
class Preview:
    """What training would see. Lengths are in tokens, before the cut at `max_length`; shares are of micro-batches."""

    source: int
    streamed: bool
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
) -> Preview:
    """Takes `dataset` (as `read_rows` gives it) through the code that training runs, and describes the result.

    It reads, tokenises, orders and pairs a whole epoch and builds a batch, so a dataset that passes here trains with
    the same arguments. Of a stream the first `STREAM_ROWS` rows are taken. `kl` is False for losses without a KL term.
    Errors: those of `normalise`, `tokenize`, `PairableSampler` and `PaddingCollator`.
    """
    options = options or RowOptions()
    datasets = require("datasets", "train")
    streamed = isinstance(dataset, datasets.IterableDataset)
    if streamed:
        dataset = datasets.Dataset.from_list(list(dataset.take(STREAM_ROWS)), features=dataset.features)
    rows = normalise(dataset, options)
    rows, report = tokenize_with_report(
        rows, tokenizer, max_length=max_length, num_proc=num_proc, chat_template=chat_template
    )
    columns = {column: rows[column][:] for column in rows.column_names}
    labels = columns["label"]
    lengths = [len(x) + len(y) for x, y in zip(columns["prompt_ids"], columns["completion_ids"], strict=True)]
    keys, conversations = columns["prompt_key"], columns["conversation"]
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
    pairs = list(map(row_key, columns["prompt_ids"], columns["completion_ids"]))
    desirable = sum(labels)
    undesirable = len(labels) - desirable
    if desirable_weight == "auto":
        desirable_weight = auto_desirable_weight(desirable, undesirable, undesirable_weight)
    has_scores = options.label_threshold is not None and options.label_column in dataset.column_names
    return Preview(
        source=len(dataset),
        streamed=streamed,
        report=report,
        max_length=max_length,
        desirable=desirable,
        undesirable=undesirable,
        ties=label_ties(dataset, options) if has_scores else None,
        prompt_lengths=_percentiles([len(ids) for ids in columns["prompt_ids"]]),
        completion_lengths=_percentiles([len(ids) for ids in columns["completion_ids"]]),
        prompts=len({*columns["prompt_key"]}),
        duplicates=len(pairs) - len({*pairs}),
        contradictions=sum(
            count > 1 for count in Counter(key for key, _ in {*zip(pairs, labels, strict=True)}).values()
        ),
        batch_size=batch_size,
        refilled=sampler.refilled,
        one_class=one_class_share(desirable, undesirable, batch_size)
        if strategy in SHUFFLED
        else one_class_share_of(order, labels, batch_size),
        batch_size_that_fits=batch_size_for(desirable, undesirable),
        desirable_weight=float(desirable_weight),
        undesirable_weight=undesirable_weight,
        examples=[_example(row, tokenizer, max_length) for row in rows.select(range(min(3, len(rows))))],
    )


def render(preview: Preview) -> str:
    """The preview as plain text, scored tokens in «»."""
    p, report = preview, preview.report
    rows = report.rows - report.dropped
    lines = [line for example in p.examples for line in (*_render_example(example), "")]
    first = "first " if p.streamed else ""
    lines += [
        f"rows         {rows} to train on, from {first}{p.source} in the source; {p.prompts} prompts",
        f"labels       {p.desirable} desirable, {p.undesirable} undesirable",
    ]
    if p.ties is not None:
        lines.append(f"ties         {p.ties} at the threshold, read as desirable")
    header = "".join(f"{_percent_name(q):>8}" for q in PERCENTILES)
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
    contradictions = f" ({p.contradictions} of them with both labels)" if p.contradictions else ""
    lines += [
        f"duplicates   {p.duplicates} rows repeat another's prompt and completion{contradictions}",
        f"refilled     {p.refilled} rows are seen twice an epoch, so that every micro-batch can be paired",
        f"one class    {p.one_class:.1%} of micro-batches of {p.batch_size} are expected to hold one class{_remedy(p)}",
        f"weights      {_weights(p)}",
    ]
    return "\n".join(lines)


def _remedy(preview: Preview) -> str:
    if preview.one_class <= ONE_CLASS_LIMIT:
        return ""
    if preview.batch_size_that_fits is None:
        return "; add rows of the other class"
    rarer = min(preview.desirable, preview.undesirable) / (preview.desirable + preview.undesirable)
    stratified = "train_sampling_strategy=stratified, or " if preview.batch_size * rarer >= 1 else ""
    return f"; {stratified}batches of {preview.batch_size_that_fits} bring it below {ONE_CLASS_LIMIT:.0%}"


def _weights(preview: Preview) -> str:
    n = (preview.desirable, preview.undesirable)
    if not all(n):
        return "one class only: no weight balances it"
    low, high = weight_range(*n, preview.undesirable_weight)
    value = f"desirable_weight={preview.desirable_weight:g}, undesirable_weight={preview.undesirable_weight:g}"
    if obeys_rule(*n, preview.desirable_weight, preview.undesirable_weight):
        return f"{value}: inside the paper's rule"
    return f"{value}: outside the paper's rule; desirable_weight from {low:.3g} to {high:.3g} fits"


def _example(row: dict, tokenizer: "PreTrainedTokenizerBase", max_length: int | None) -> Example:
    batch = PaddingCollator(0, max_length, kl=False)([row])
    scored = {position + 1 for position in batch["logit_index"].tolist()}
    ids = batch["input_ids"][0].tolist()
    return Example(
        row["row_id"], row["label"], [_token(tokenizer, i) for i in ids], [i in scored for i in range(len(ids))]
    )


def _token(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    text = str(tokenizer.decode([token]))
    if not text or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t").replace("\0", "\\0")


def _render_example(example: Example) -> list[str]:
    """The row's prompt (a dot after each token) and its scored tokens; the middle of long ones is left out."""
    start = example.scored.index(True) if any(example.scored) else len(example.tokens)
    label = "desirable" if example.label else "undesirable"
    prompt = [f"{token}\u00b7" for token in example.tokens[:start]]
    scored = [f"«{token}»" for token in example.tokens[start:]]
    return [f"row {example.row_id}, {label}:", f"  prompt     {_shorten(prompt)}", f"  scored     {_shorten(scored)}"]


def _shorten(tokens: list[str]) -> str:
    left_out = len(tokens) - 2 * SHOWN
    if left_out <= 0:
        return "".join(tokens)
    return f"{''.join(tokens[:SHOWN])} ...{left_out} tokens... {''.join(tokens[-SHOWN:])}"


def _percentiles(values: Sequence[int]) -> list[int]:
    """Nearest-rank percentiles."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in PERCENTILES]


def _percent_name(q: int) -> str:
    return {0: "min", 50: "median", 100: "max"}.get(q, f"{q}%")
