"""Rows as they come -> rows of one shape: prompt, completion, label, row_id, conversation."""

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fastkto.errors import InputError
from fastkto.ranges import check_ranges
from fastkto.rows.labels import as_number, label_reader
from fastkto.rows.readers import Reading, read_dataset, say
from fastkto.rows.shapes.decision import decide, head, value_at
from fastkto.rows.shapes.expanding import OUTPUT, Expand, Lazily, expanded, first_error
from fastkto.rows.shapes.faults import BETWEEN, NO_ANSWER, NO_LABEL, NO_PROMPT, ONE_ANSWER, ReadReport, count_faults
from fastkto.rows.shapes.looking import as_written, column_names, fills, is_map_style, is_normalised, mark, shown

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLE_SEED = 42
logger = logging.getLogger(__name__)


@dataclass
class RowOptions:
    """How the columns of a dataset are read as prompts, completions and labels."""

    prompt_column: str | None = field(
        default=None,
        metadata={"help": "Column, or path such as inputs.messages, that holds the prompt; unset: prompt."},
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "Column or path that holds the completion; unset: completion."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column or path that holds the feedback; unset: label."}
    )
    weight_column: str | None = field(
        default=None,
        metadata={"help": "Column or path that holds how much a row counts, a number from 0 on; unset: all count 1."},
    )
    label_map: list[str] | None = field(
        default=None, metadata={"help": "What each word of feedback means: WORD=true for desirable, WORD=false."}
    )
    label_threshold: float | None = field(
        default=None, metadata={"help": "Scores: desirable from this value on (a tie is desirable), else undesirable."}
    )
    label_band: list[float] | None = field(
        default=None,
        metadata={
            "help": "Scores, two numbers: undesirable up to the first, desirable from the second on; rows between the "
            "two are left out and counted."
        },
    )
    every_assistant_turn: bool = field(
        default=False,
        metadata={
            "help": "Conversations: train on every assistant turn that has a label (its own, else the conversation's) "
            "instead of the last one."
        },
    )
    chat: bool = field(
        default=False,
        metadata={"help": "Text prompts and completions become a user's and an assistant's turn of a chat."},
    )
    on_unrated: str = field(
        default="error", metadata={"help": "Rows without a label: drop or error.", "choices": ["drop", "error"]}
    )
    on_empty: str = field(
        default="error",
        metadata={"help": "Rows without a prompt or an answer: drop or error.", "choices": ["drop", "error"]},
    )

    reader: str | None = field(
        default=None,
        metadata={
            "help": "Whose records these are: openwebui, langfuse, langsmith, sharegpt, hh, shp, oasst, ultrafeedback, "
            "auto to tell by their keys, or a .yaml or .json file that says where they hold what. Unset: rows with "
            "the columns named above."
        },
    )

    def __post_init__(self) -> None:
        """Refuse a number out of its range, and an action that there is not."""
        check_ranges(self)
        for name in ("on_unrated", "on_empty"):
            if (action := getattr(self, name)) not in ("drop", "error"):
                raise InputError(name, action, "drop or error", "Correct the value.")

    def left_out(self) -> frozenset[str]:
        """The kinds of fault for which a row is left out and counted; any other is an error."""
        kinds = {BETWEEN, ONE_ANSWER}
        kinds |= {NO_LABEL} if self.on_unrated == "drop" else set()
        kinds |= {NO_PROMPT, NO_ANSWER} if self.on_empty == "drop" else set()
        return frozenset(kinds)


def normalise(
    dataset: "Dataset | IterableDataset", options: RowOptions | None = None, *, dataset_name: str = "train"
) -> "Dataset | IterableDataset":
    """One row per (prompt, completion, label), whatever shape the feedback came in.

    Takes prompt/completion/label (text or lists of messages), chosen/rejected with or without a prompt (unpaired and
    shuffled with a fixed seed) and messages + label. Gives prompt, completion (str or list of messages with the keys
    that they came with), label (bool), row_id (int, position in the source), conversation (int, shared by rows that
    are never paired with each other), tools, chat_template_kwargs, truncated where the source has them, and weight
    (float) where `options` name its column. Which column means what is decided before the rows are looked at, by what
    `options` name and then by name. A tokenised or normalised dataset passes through; a streaming one stays lazy.
    Errors: `InputError` naming the column, or the first row at fault with the number of rows of every kind of fault.
    """
    rows, error = normalise_the_good(dataset, options, dataset_name=dataset_name)
    if error is not None:
        raise error
    return rows


def normalise_the_good(
    dataset: "Dataset | IterableDataset",
    options: RowOptions | None = None,
    *,
    dataset_name: str = "train",
    reading: Reading | None = None,
) -> "tuple[Dataset | IterableDataset, InputError | None]":
    """`normalise` without the rows that are at fault, and the error that it would raise because of them.

    `reading` is what a reader made of the records, where `dataset` holds its rows already. The faults of a stream are
    not known: its first row that is not left out raises when it is read.
    """
    options = options or RowOptions()
    names = column_names(dataset, dataset_name)
    if {"prompt_ids", "completion_ids"} <= {*names} or is_normalised(dataset, names, OUTPUT):
        return dataset, None
    if options.reader is not None:
        dataset, options, reading = read_dataset(dataset, options, dataset_name=dataset_name)
        say(reading, dataset_name)
    dataset = shown(dataset)
    names = column_names(dataset, dataset_name)
    columns = decide(names, fills(dataset), options, dataset_name)
    if columns.unused:
        logger.warning("%s: columns that are not used: %s", dataset_name, ", ".join(columns.unused))
    read = label_reader(options.label_map, options.label_threshold, options.label_band)
    expand = Expand(columns, options, read, dataset_name, None if reading is None else tuple(reading.numbers))
    report = ReadReport(dataset_name, columns.sentence(options), 0, ())
    if not is_map_style(dataset):
        lazily = Lazily(expand, as_written(dataset))
        stream = dataset.map(lazily, batched=True, batch_size=1, with_indices=True, remove_columns=names)
        stream = stream.shuffle(seed=SHUFFLE_SEED) if columns.shape == "paired" else stream
        return mark(stream, report), None
    if options.label_threshold is not None and columns.label and (ties := label_ties(dataset, options)):
        side = "are read as desirable (label_threshold is inclusive)"
        logger.warning("%d rows at %s = %g %s", ties, columns.label, options.label_threshold, side)
    rows = expanded(dataset, expand, dataset_name)
    kinds = rows["fault"][:]
    faults = count_faults(zip(rows["row_id"][:], kinds, strict=True), options.left_out())
    error = first_error(expand, dataset, faults, dict(zip(rows["conversation"][:], kinds, strict=True)))
    rows = rows.remove_columns("fault")
    if faults:
        rows = rows.select([i for i, kind in enumerate(kinds) if not kind])
    for fault in faults:
        if fault.left_out:
            logger.warning("%s: left out, %s", dataset_name, fault)
    rows = rows.shuffle(seed=SHUFFLE_SEED) if columns.shape == "paired" else rows
    report = replace(report, source=len(dataset), faults=faults)
    if reading is not None:
        left_out = tuple(reading.left_out.lines())
        report = replace(report, source=reading.records, reader=reading.reader, left_out=left_out)
    return mark(rows, report), error


def label_ties(dataset: "Dataset", options: RowOptions) -> int:
    """How many rows have a score that is exactly `options.label_threshold`."""
    path = options.label_column or "label"
    column = head(path, dataset.column_names)
    if column is None:
        return 0
    cells = dataset.with_format(None)[column]
    return sum(as_number(value_at({column: cell}, path)) == options.label_threshold for cell in cells)
