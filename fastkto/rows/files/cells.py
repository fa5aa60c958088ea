"""A cell of an Arrow table as its row was written: Arrow gives every struct the keys of all others."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require

if TYPE_CHECKING:
    import pyarrow

JSON_TEXT = "fastkto json"
Reader = Callable[[Any], Any]


def json_type() -> Any:
    """The feature for cells that keep the structure which each of them has, stored as JSON."""
    datasets = require("datasets", "train")
    if not hasattr(datasets, "Json"):
        fix = "Run: pip install 'datasets>=4.7'."
        raise InputError("datasets", datasets.__version__, "version 4.7 or newer, which can store JSON", fix)
    return datasets.Json()


def table_rows(table: "pyarrow.Table | pyarrow.RecordBatch", features: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table as they were written. `features` are those of the dataset that the table is of."""
    columns = {}
    for name in table.column_names:
        cells, read = table.column(name).to_pylist(), reader(features[name])
        columns[name] = cells if read is None else [None if cell is None else read(cell) for cell in cells]
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def reader(feature: Any, *, decoded: bool = False) -> Reader | None:
    """What turns a stored cell, not null, of a feature into what was written; None where it is that already.

    JSON is read, a class's number becomes its name, and a struct loses the keys that are null: Arrow adds these where
    another row has a value. A key that has no value in any row is nothing that Arrow added, and stays. `decoded` cells
    hold JSON that was read.
    """
    datasets = require("datasets", "train")
    if type(feature).__name__ == "Json":
        return None if decoded else json.loads
    if getattr(feature, "id", None) == JSON_TEXT:
        return json.loads
    if isinstance(feature, datasets.ClassLabel):
        return lambda number: feature.names[number] if 0 <= number < len(feature.names) else number
    if isinstance(feature, dict):
        fields = {name: reader(inner, decoded=decoded) for name, inner in feature.items()}
        kept = {name for name, inner in feature.items() if getattr(inner, "dtype", None) == "null"}
        return lambda struct: {
            name: value if value is None or (read := fields[name]) is None else read(value)
            for name, value in struct.items()
            if value is not None or name in kept
        }
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None and (read := reader(inner, decoded=decoded)) is not None:
        return lambda items: _each(items, read)
    return None


def _each(items: Any, read: Reader) -> Any:
    return [None if item is None else read(item) for item in items]
