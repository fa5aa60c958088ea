"""A dataset as its user sees it: its columns, whether anything is in them, and whether it was normalised already."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import reader, table_rows
from fastkto.rows.shapes.faults import ReadReport, report_from, report_text
from fastkto.rows.shapes.messages import holds

MARK = "fastkto rows"
PEEK = 4


def is_map_style(dataset: Any) -> bool:
    """Whether the rows are there, and not read as they are asked for."""
    return isinstance(dataset, require("datasets", "train").Dataset)


def is_transformed(dataset: Any) -> bool:
    """Whether the rows are what a function of the user makes of them (`with_transform`)."""
    return is_map_style(dataset) and dataset.format["type"] == "custom"


def shown(dataset: Any) -> Any:
    """The rows as Python objects, in the columns that `dataset[i]` shows."""
    if is_transformed(dataset):
        return dataset
    plain = dataset.with_format(None)
    if is_map_style(dataset) and {*dataset.format["columns"]} != {*dataset.column_names}:
        plain = plain.select_columns(dataset.format["columns"])
    return plain


def column_names(dataset: Any, dataset_name: str) -> list[str]:
    """The columns of a dataset that has rows; a stream is read, up to its first row, only if it does not know them."""
    if dataset.column_names and not is_map_style(dataset):
        return list(dataset.column_names)
    if is_map_style(dataset) and not is_transformed(dataset) and len(dataset):
        return list(dataset.format["columns"])
    first = next(iter(dataset), None)
    if first is None:
        raise InputError(f"{dataset_name} dataset", "no rows", "at least one row", "Check the file and the split.")
    return list(first)


def fills(dataset: Any) -> Callable[[str], bool]:
    """Whether any row has something in a column; of a stream the first `PEEK` rows are looked at."""
    if is_transformed(dataset) or not is_map_style(dataset):
        head = list(islice(iter(dataset), PEEK))
        return lambda column: any(holds(row.get(column)) for row in head)
    return lambda column: any(holds(cell) for cell in _cells(dataset, column))


def is_normalised(dataset: Any, names: list[str], output: tuple[str, ...]) -> bool:
    """Whether `normalise` has made this dataset: by its mark, since columns of a user may have the same names."""
    row_id = (dataset.features or {}).get("row_id")
    marked = MARK in (dataset.info.description or "") or getattr(row_id, "id", None) == MARK
    return marked and {*output} <= {*names}


def mark(dataset: Any, report: ReadReport) -> Any:
    """The same rows, known as normalised, with the report of how they were read."""
    dataset.info.description = f"{MARK} {report_text(report)}"
    return dataset


def reports_of(dataset: Any) -> list[ReadReport]:
    """How the rows of a normalised dataset were read: a report for each source that was joined in it."""
    parts = (dataset.info.description or "").split("\n\n")
    return [report_from(part.removeprefix(MARK)) for part in parts if part.startswith(MARK)]


def rows_as_written(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a dataset that is not streamed, as they were written or as its transform makes them."""
    dataset = shown(dataset)
    if is_transformed(dataset):
        yield from dataset
        return
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        yield from table_rows(table, dataset.features)


def as_written(dataset: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What turns a row of a stream into what was written (see `cells.reader`).

    A stream that knows its features, or that comes out of Arrow tables, holds the padding of these; one of Python
    objects holds none.
    """
    if dataset.features is not None:
        return _Typed(dataset.features)
    padded = getattr(getattr(dataset, "_ex_iterable", None), "iter_arrow", None) is not None
    return _without_nulls if padded else dict


@dataclass(frozen=True)
class _Typed:
    """Reads the rows of a stream with features; a class, so that it reaches the processes of a data loader."""

    features: Any

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: self._cell(name, cell) for name, cell in row.items()}

    def _cell(self, name: str, cell: Any) -> Any:
        if cell is None or name not in self.features:
            return cell
        read = reader(self.features[name], decoded=True)
        return cell if read is None else read(cell)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _present(cell) for name, cell in row.items()}


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


def _cells(dataset: Any, column: str) -> Iterator[Any]:
    cells = dataset.select_columns([column]).with_format("arrow")
    for table in cells.iter(batch_size=1000):
        values = table.column(0)
        if values.null_count < len(values):
            yield from values.to_pylist()
