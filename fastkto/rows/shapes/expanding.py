"""Source rows -> records of prompt, completion and label: a table of them, or one row of a stream after another."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import json_type, table_rows
from fastkto.rows.files.fingerprint import code_digest
from fastkto.rows.labels import LabelReader, read_weight, warn_once
from fastkto.rows.shapes.decision import Columns, value_at
from fastkto.rows.shapes.faults import Fault, Unusable, with_all
from fastkto.rows.shapes.formats import Record, carried_cells, completion_record, message_records, paired_records
from fastkto.rows.shapes.looking import MARK, is_transformed

if TYPE_CHECKING:
    from datasets import Dataset

    from fastkto.rows.normalise import RowOptions

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


@dataclass(frozen=True)
class Expand:
    """Source rows -> records; `code` makes the cache of `datasets` notice a new version."""

    columns: Columns
    options: "RowOptions"
    read: LabelReader
    dataset_name: str
    numbers: tuple[int, ...] | None = None
    """The record of the file that each row was read from, where a reader did."""
    code: str = CODE

    def __call__(self, row: Record, index: int) -> Iterator[Record]:
        """The records of the row at a position. Errors: `Unusable`."""
        columns, options = self.columns, self.options
        where = f"{self.dataset_name} {'row' if self.numbers is None else 'record'} {self.number(index)}"
        if columns.shape == "paired":
            records = paired_records(row, columns, where, options.chat)
        elif columns.shape == "messages":
            records = message_records(row, columns, self.read, where, options.every_assistant_turn)
        else:
            records = completion_record(row, columns, self.read, where, options.chat)
        beside = carried_cells(row, columns, where)
        complete = list(records)  # first: a row that is left out needs no weight
        if columns.weight is not None:
            beside["weight"] = read_weight(value_at(row, columns.weight), f"{where}, column {columns.weight!r}")
        for record in complete:
            record |= {"row_id": self.number(index), "conversation": index, **beside}
            if "truncated" in record:
                record["truncated"] = record["truncated"] and record.get("last", True)
            yield record

    def number(self, index: int) -> int:
        """How the row at a position is known to its user."""
        return index if self.numbers is None else self.numbers[index]


@dataclass(frozen=True)
class Lazily:
    """Rows of a stream, one at a time: a fault that is not left out is raised."""

    expand: Expand
    as_written: Callable[[Record], Record]

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """The records of a batch of one row."""
        [cells] = zip(*batch.values(), strict=True)
        records: list[Record] = []
        try:
            records = list(self.expand(self.as_written(dict(zip(batch, cells, strict=True))), indices[0]))
        except Unusable as error:
            if error.kind not in self.expand.options.left_out():
                raise
            text = f"{self.expand.dataset_name}: rows are left out, {error.kind} (the first is row {indices[0]})"
            warn_once(logger, text)
        return {column: [record[column] for record in records] for column in (*OUTPUT, *self.expand.columns.beside)}


@dataclass(frozen=True)
class _Eagerly:
    """Rows of a table -> a table of records, and one of a kind of fault for each row that has one."""

    expand: Expand
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
                numbers = {"row_id": self.expand.number(index), "conversation": index}
                records.append(numbers | {"fault": error.kind})
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


def expanded(dataset: "Dataset", expand: Expand, dataset_name: str) -> "Dataset":
    """The records of all rows; one with a fault has its kind in the column `fault`, and no record."""
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


def first_error(
    expand: Expand, dataset: "Dataset", faults: tuple[Fault, ...], kinds: dict[int, str]
) -> InputError | None:
    """The error of the first row whose fault is not left out, or of the first row where none is usable.

    `kinds` are the faults of the rows by their positions.
    """
    fatal = {fault.kind for fault in faults if not fault.left_out}
    if not fatal and (not faults or sum(fault.rows for fault in faults) < len(kinds)):
        return None
    first = next(index for index, kind in kinds.items() if kind and (not fatal or kind in fatal))
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
    plain = {"truncated": "bool", "weight": "float64"}
    for name in columns.beside:
        types[name] = datasets.Value(plain[name]) if name in plain else json_type()
    return datasets.Features(types | {"fault": datasets.Value("string")})
