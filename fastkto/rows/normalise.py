"""Rows as they come -> rows of one shape: prompt, completion, label, row_id, conversation."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.fingerprint import code_digest
from fastkto.rows.formats import Record, completion_record, message_records, paired_records, truncated_cell
from fastkto.rows.labels import LabelReader, label_reader
from fastkto.rows.readers import hint, read_dataset, say

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLE_SEED = 42
CODE = code_digest("fastkto.rows.labels", "fastkto.rows.formats", __name__)
_OUTPUT = ("prompt", "completion", "label", "row_id", "conversation")
logger = logging.getLogger(__name__)


@dataclass
class RowOptions:
    """How the columns of a dataset are read as prompts, completions and labels."""

    prompt_column: str = field(default="prompt", metadata={"help": "Column that holds the prompt."})
    completion_column: str = field(default="completion", metadata={"help": "Column that holds the completion."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the feedback."})
    label_map: list[str] | None = field(
        default=None, metadata={"help": "What each word of feedback means: WORD=true for desirable, WORD=false."}
    )
    label_threshold: float | None = field(
        default=None, metadata={"help": "Scores: desirable from this value on (a tie is desirable), else undesirable."}
    )
    every_assistant_turn: bool = field(
        default=False,
        metadata={
            "help": "Conversations: train on every assistant turn that has a label (its own, else the conversation's) "
            "instead of the last one."
        },
    )
    reader: str | None = field(
        default=None,
        metadata={
            "help": "Whose records these are: openwebui, langfuse, langsmith, sharegpt, hh, shp, oasst, ultrafeedback, "
            "auto to tell by their keys, or a .yaml or .json file that says where they hold what. Unset: rows with "
            "the columns named above."
        },
    )


def normalise(
    dataset: "Dataset | IterableDataset", options: RowOptions | None = None, *, dataset_name: str = "train"
) -> "Dataset | IterableDataset":
    """One row per (prompt, completion, label), whatever shape the feedback came in.

    Takes prompt/completion/label (text or lists of messages), chosen/rejected with or without a prompt (unpaired and
    shuffled with a fixed seed) and messages + label. Gives prompt, completion (str or list of messages), label (bool),
    row_id (int, position in the source), conversation (int, shared by rows that are never paired with each other),
    and tools, chat_template_kwargs, truncated where the source has them. A tokenised dataset passes through; a
    streaming one stays lazy. Errors: `InputError` naming the column, or the row and the column.
    """
    options = options or RowOptions()
    columns = column_names(dataset, dataset_name)
    if {"prompt_ids", "completion_ids"} <= {*columns} or {*_OUTPUT} <= {*columns}:
        return dataset
    if options.reader is not None:
        dataset, options, reading = read_dataset(dataset, options, dataset_name=dataset_name)
        say(reading, dataset_name)
        columns = column_names(dataset, dataset_name)
    dataset = dataset.with_format(None)
    shape = _shape(columns, options, dataset_name)
    carried: list[str] = [column for column in ("tools", "chat_template_kwargs", "truncated") if column in columns]
    labels = label_reader(options.label_map, options.label_threshold)
    expand = _Expand(shape, options, labels, tuple(carried), dataset_name)
    if options.label_threshold is not None and shape != "paired":
        _name_ties(dataset, options, columns)
    if not _is_map_style(dataset):
        stream = dataset.map(expand, batched=True, batch_size=1, with_indices=True, remove_columns=columns)
        return stream.shuffle(seed=SHUFFLE_SEED) if shape == "paired" else stream
    rows = dataset.map(
        expand,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=_features(dataset, shape, options, carried),
        desc=f"Reading {dataset_name} rows",
    )
    return rows.shuffle(seed=SHUFFLE_SEED) if shape == "paired" else rows


def column_names(dataset: "Dataset | IterableDataset", dataset_name: str) -> list[str]:
    """The columns of a dataset that has rows; a stream is read, up to its first row, only if it does not know them."""
    if dataset.column_names and not _is_map_style(dataset):
        return list(dataset.column_names)
    first = next(iter(dataset), None)
    if first is None:
        raise InputError(f"{dataset_name} dataset", "no rows", "at least one row", "Check the file and the split.")
    return list(dataset.column_names or first)


def label_ties(dataset: "Dataset", options: RowOptions) -> int:
    """How many rows have a score that is exactly `options.label_threshold`."""
    return sum(score == options.label_threshold for score in dataset[options.label_column])


def _name_ties(dataset: "Dataset | IterableDataset", options: RowOptions, columns: list[str]) -> None:
    side = (
        f"at {options.label_column} = {options.label_threshold:g} are read as desirable (label_threshold is inclusive)"
    )
    if not _is_map_style(dataset):
        logger.info("Rows %s", side)
    elif options.label_column in columns and (ties := label_ties(dataset, options)):
        logger.warning("%d rows %s", ties, side)


@dataclass(frozen=True)
class _Expand:
    """The function that `datasets` maps over batches of source rows; `code` makes its cache notice a new version."""

    shape: str
    options: RowOptions
    read: LabelReader
    carried: tuple[str, ...]
    dataset_name: str
    code: str = CODE

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = (dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True))
        records = [r for i, row in zip(indices, rows, strict=True) for r in self._records(row, i)]
        return {column: [record[column] for record in records] for column in (*_OUTPUT, *self.carried)}

    def _records(self, row: Record, index: int) -> Iterator[Record]:
        where = f"{self.dataset_name} row {index}"
        options = self.options
        if self.shape == "paired":
            records = paired_records(row, where)
        elif self.shape == "messages":
            every = options.every_assistant_turn
            records = message_records(row, options.label_column, self.read, where, every)
        else:
            columns = (options.prompt_column, options.completion_column, options.label_column)
            records = completion_record(row, columns, self.read, where)
        for record in records:
            record |= {"row_id": index, "conversation": index} | {column: row[column] for column in self.carried}
            if "truncated" in record:
                cut = truncated_cell(row["truncated"], f"{where}, column 'truncated'")
                record["truncated"] = cut and record.get("last", True)
            yield record


def _is_map_style(dataset: Any) -> bool:
    return isinstance(dataset, require("datasets", "train").Dataset)


def _shape(columns: list[str], options: RowOptions, dataset_name: str) -> str:
    if pictures := [column for column in ("images", "image") if column in columns]:
        fix = "Remove the column to train on the text alone, or use trl.KTOTrainer."
        raise InputError(f"{dataset_name} columns", columns, f"rows of text, without {pictures[0]!r}", fix)
    if {"chosen", "rejected"} <= {*columns}:
        return "paired"
    if options.completion_column in columns:
        for option in ("prompt_column", "completion_column", "label_column"):
            if (column := getattr(options, option)) not in columns:
                fix = f"Name yours with --{option}."
                raise InputError(f"{dataset_name} columns", columns, f"a column {column!r}", fix)
        return "completion"
    if "messages" in columns:
        return "messages"
    raise InputError(
        f"{dataset_name} columns",
        columns,
        f"{options.prompt_column} + {options.completion_column} + {options.label_column}, chosen + rejected, "
        f"or messages + {options.label_column}",
        f"Name yours with --prompt_column, --completion_column and --label_column.{hint(columns)}",
    )


def _features(dataset: "Dataset", shape: str, options: RowOptions, carried: list[str]) -> Any:
    datasets = require("datasets", "train")
    source = dataset.features
    answer = {"paired": "chosen", "completion": options.completion_column, "messages": "messages"}[shape]
    prompt = {"paired": "prompt" if "prompt" in source else "chosen", "completion": options.prompt_column}
    features = {"prompt": source[prompt.get(shape, "messages")], "completion": source[answer]}
    if shape == "paired" and features["prompt"] != features["completion"]:
        features["prompt"] = source["chosen"]
    features |= {"label": datasets.Value("bool"), "row_id": datasets.Value("int64")}
    features |= {"conversation": datasets.Value("int64")} | {column: source[column] for column in carried}
    if "truncated" in carried:
        features["truncated"] = datasets.Value("bool")
    return datasets.Features(features)
