"""Rows as they come -> rows of one shape: prompt, completion, label, row_id, conversation."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import json_type, table_rows
from fastkto.rows.files.fingerprint import code_digest
from fastkto.rows.labels import LabelReader, as_number, label_reader, warn_once
from fastkto.rows.shapes.decision import Columns, decide, head, value_at
from fastkto.rows.shapes.faults import (
    BETWEEN,
    NO_ANSWER,
    NO_LABEL,
    NO_PROMPT,
    ONE_ANSWER,
    Fault,
    ReadReport,
    Unusable,
    count_faults,
    with_all,
)
from fastkto.rows.shapes.formats import Record, carried_cells, completion_record, message_records, paired_records
from fastkto.rows.shapes.looking import (
    MARK,
    as_written,
    column_names,
    fills,
    is_map_style,
    is_normalised,
    is_transformed,
    mark,
    shown,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLE_SEED = 42
CODE = code_digest(
    "fastkto.rows.labels",
    "fastkto.rows.files.cells",
    "fastkto.rows.shapes.decision",
    "fastkto.rows.shapes.formats",
    "fastkto.rows.shapes.messages",
    __name__,
)
OUTPUT = ("prompt", "completion", "label", "row_id", "conversation")
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

    def __post_init__(self) -> None:
        """Refuse an action that there is not."""
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
    are never paired with each other), and tools, chat_template_kwargs, truncated where the source has them. Which
    column means what is decided before the rows are looked at, by what `options` name and then by name. A tokenised
    or normalised dataset passes through; a streaming one stays lazy. Errors: `InputError` naming the column, or the
    first row at fault with the number of rows of every kind of fault.
    """
    rows, error = normalise_the_good(dataset, options, dataset_name=dataset_name)
    if error is not None:
        raise error
    return rows


def normalise_the_good(
    dataset: "Dataset | IterableDataset", options: RowOptions | None = None, *, dataset_name: str = "train"
) -> "tuple[Dataset | IterableDataset, InputError | None]":
    """`normalise` without the rows that are at fault, and the error that it would raise because of them.

    The faults of a stream are not known: its first row that is not left out raises when it is read.
    """
    options = options or RowOptions()
    names = column_names(dataset, dataset_name)
    if {"prompt_ids", "completion_ids"} <= {*names} or is_normalised(dataset, names, OUTPUT):
        return dataset, None
    dataset = shown(dataset)
    names = column_names(dataset, dataset_name)
    columns = decide(names, fills(dataset), options, dataset_name)
    if columns.unused:
        logger.warning("%s: columns that are not used: %s", dataset_name, ", ".join(columns.unused))
    read = label_reader(options.label_map, options.label_threshold, options.label_band)
    expand = _Expand(columns, options, read, dataset_name)
    sentence = columns.sentence(options)
    if not is_map_style(dataset):
        lazily = _Lazily(expand, as_written(dataset))
        stream = dataset.map(lazily, batched=True, batch_size=1, with_indices=True, remove_columns=names)
        stream = stream.shuffle(seed=SHUFFLE_SEED) if columns.shape == "paired" else stream
        return mark(stream, ReadReport(dataset_name, sentence, 0, ())), None
    if options.label_threshold is not None and columns.label and (ties := label_ties(dataset, options)):
        side = "are read as desirable (label_threshold is inclusive)"
        logger.warning("%d rows at %s = %g %s", ties, columns.label, options.label_threshold, side)
    rows = _expanded(dataset, expand, dataset_name)
    kinds, numbers = rows["fault"][:], rows["row_id"][:]
    faults = count_faults(zip(numbers, kinds, strict=True), options.left_out())
    error = _error(expand, dataset, faults, dict(zip(numbers, kinds, strict=True)))
    rows = rows.remove_columns("fault")
    if faults:
        rows = rows.select([i for i, kind in enumerate(kinds) if not kind])
    for fault in faults:
        if fault.left_out:
            logger.warning("%s: left out, %s", dataset_name, fault)
    rows = rows.shuffle(seed=SHUFFLE_SEED) if columns.shape == "paired" else rows
    return mark(rows, ReadReport(dataset_name, sentence, len(dataset), faults)), error


def label_ties(dataset: "Dataset", options: RowOptions) -> int:
    """How many rows have a score that is exactly `options.label_threshold`."""
    path = options.label_column or "label"
    column = head(path, dataset.column_names)
    if column is None:
        return 0
    cells = dataset.with_format(None)[column]
    return sum(as_number(value_at({column: cell}, path)) == options.label_threshold for cell in cells)


@dataclass(frozen=True)
class _Expand:
    """Source rows -> records; `code` makes the cache of `datasets` notice a new version."""

    columns: Columns
    options: RowOptions
    read: LabelReader
    dataset_name: str
    code: str = CODE

    def __call__(self, row: Record, index: int) -> Iterator[Record]:
        where, columns, options = f"{self.dataset_name} row {index}", self.columns, self.options
        if columns.shape == "paired":
            records = paired_records(row, columns, where, options.chat)
        elif columns.shape == "messages":
            records = message_records(row, columns, self.read, where, options.every_assistant_turn)
        else:
            records = completion_record(row, columns, self.read, where, options.chat)
        carried = carried_cells(row, columns, where)
        for record in records:
            record |= {"row_id": index, "conversation": index, **carried}
            if "truncated" in record:
                record["truncated"] = record["truncated"] and record.get("last", True)
            yield record


@dataclass(frozen=True)
class _Lazily:
    """Rows of a stream, one at a time: a fault that is not left out is raised."""

    expand: _Expand
    as_written: Callable[[Record], Record]

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        [cells] = zip(*batch.values(), strict=True)
        records: list[Record] = []
        try:
            records = list(self.expand(self.as_written(dict(zip(batch, cells, strict=True))), indices[0]))
        except Unusable as error:
            if error.kind not in self.expand.options.left_out():
                raise
            text = f"{self.expand.dataset_name}: rows are left out, {error.kind} (the first is row {indices[0]})"
            warn_once(logger, text)
        return {column: [record[column] for record in records] for column in (*OUTPUT, *self.expand.columns.carried)}


@dataclass(frozen=True)
class _Eagerly:
    """Rows of a table -> a table of records, and one of a kind of fault for each row that has one."""

    expand: _Expand
    features: Any

    def __call__(self, table: Any, indices: list[int]) -> Any:
        return self.records(table_rows(table, self.features), indices)

    def records(self, rows: Iterable[Record], indices: list[int]) -> Any:
        """The table of the records of `rows`, whose numbers are `indices`."""
        import pyarrow as pa

        records: list[Record] = []
        for row, index in zip(rows, indices, strict=True):
            try:
                records += list(self.expand(row, index))  # all of a row's records, or none
            except Unusable as error:
                records.append({"row_id": index, "conversation": index, "fault": error.kind})
        schema = _features(self.expand.columns).arrow_schema
        return pa.table([_array([r.get(name) for r in records], schema.field(name)) for name in schema.names], schema)


@dataclass(frozen=True)
class _Transformed:
    """Rows that a function of the user makes, asked for by their numbers."""

    eagerly: _Eagerly
    dataset: Any

    def __call__(self, table: Any, indices: list[int]) -> Any:
        batch = self.dataset[indices]
        rows = (dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True))
        return self.eagerly.records(rows, indices)


def _expanded(dataset: "Dataset", expand: _Expand, dataset_name: str) -> "Dataset":
    datasets = require("datasets", "train")
    function: Any = _Eagerly(expand, dataset.features)
    if is_transformed(dataset):
        function = _Transformed(function, dataset)
        dataset = datasets.Dataset.from_dict({"row_id": range(len(dataset))})
    rows = dataset.with_format("arrow").map(
        function,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(expand.columns),
        desc=f"Reading {dataset_name} rows",
    )
    return rows.with_format(None)


def _array(cells: list[Any], field: Any) -> Any:
    import pyarrow as pa

    if not isinstance(field.type, pa.JsonType):
        return pa.array(cells, field.type)
    texts = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
    return pa.ExtensionArray.from_storage(field.type, pa.array(texts, pa.string()))


def _error(expand: _Expand, dataset: "Dataset", faults: tuple[Fault, ...], kinds: dict[int, str]) -> InputError | None:
    """The error of the first row whose fault is not left out, or of the first row where none is usable."""
    fatal = {fault.kind for fault in faults if not fault.left_out}
    if not fatal and (not faults or sum(fault.rows for fault in faults) < len(kinds)):
        return None
    first = next(number for number, kind in kinds.items() if kind and (not fatal or kind in fatal))
    if is_transformed(dataset):
        row = dataset[first]
    else:
        [row] = table_rows(dataset.with_format("arrow")[[first]], dataset.features)
    try:
        list(expand(row, first))
    except Unusable as error:
        return with_all(error, faults)
    raise AssertionError(f"row {first} of {expand.dataset_name} has a fault that is not there again")


def _features(columns: Columns) -> Any:
    datasets = require("datasets", "train")
    types = {"prompt": json_type(), "completion": json_type(), "label": datasets.Value("bool")}
    types |= {"row_id": datasets.Value("int64", id=MARK), "conversation": datasets.Value("int64")}
    for name in columns.carried:
        types[name] = datasets.Value("bool") if name == "truncated" else json_type()
    return datasets.Features(types | {"fault": datasets.Value("string")})
