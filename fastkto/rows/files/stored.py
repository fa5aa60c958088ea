"""Files -> one memory-mapped Arrow file, known by what the files hold and not by their date."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import require
from fastkto.rows.files.cells import json_type
from fastkto.rows.files.csv_records import csv_records
from fastkto.rows.files.fingerprint import code_digest
from fastkto.rows.files.json_records import json_records
from fastkto.rows.files.opening import UNREADABLE, damaged, kind_of
from fastkto.rows.files.parquet_records import parquet_batches, parquet_records

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Record = dict[str, Any]
Convert = Callable[[Iterator[Record]], Iterable[Record]]
RECORDS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "json": json_records,
    "csv": csv_records,
    "parquet": parquet_records,
}
ROWS_A_BATCH, BYTES_A_BATCH = 1000, 1 << 24
_INT64 = range(-(2**63), 2**63)
CODE = code_digest(
    "fastkto.rows.files.csv_records", "fastkto.rows.files.json_records", "fastkto.rows.files.parquet_records", __name__
)


class EmptyFile(Exception):
    """There is no record in any of the files."""


def records(files: list[Path], convert: Convert | None = None) -> Iterator[Record]:
    """The records of all files, each a dict as the file has it, after `convert` where one is given."""
    raw = chain.from_iterable(map(_raw, files))
    yield from convert(raw) if convert else raw


def _raw(path: Path) -> Iterator[Record]:
    try:
        yield from RECORDS[str(kind_of(path))](path)
    except UNREADABLE as error:
        raise damaged(path, error) from error


def stored(files: list[Path], convert: Convert | None = None) -> "Dataset":
    """The records of all files as a dataset, with a column for every key that any record has.

    A column in which every value is text, true or false, or one kind of number has that type. Any other holds JSON,
    with the structure that each record came with.
    """
    datasets = require("datasets", "train")
    digest = _digest(files, convert)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "fastkto" / digest
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            if kind_of(files[0]) == "parquet" and convert is None:
                _write(scratch / "rows.arrow", parquet_batches(files))
            else:
                columns = column_types(records(files, convert))
                _write(scratch / "rows.arrow", _arrow(records(files, convert), columns))
            try:
                os.rename(scratch, folder)  # a reader sees the whole folder or none
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return datasets.Dataset.from_file(str(folder / "rows.arrow"))


def column_types(rows: Iterable[Record]) -> dict[str, str]:
    """The columns in the order in which they appear, each with its type: string, bool, int64, float64 or json."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(_kind(value))
    return {name: _type(found - {"null"}) for name, found in kinds.items()}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if value in _INT64 else "json"
    return {str: "string", float: "float64"}.get(type(value), "json")


def _type(kinds: set[str]) -> str:
    return kinds.pop() if len(kinds) == 1 else "json"


def _write(path: Path, batches: Iterator["pyarrow.RecordBatch"]) -> None:
    import pyarrow as pa

    first = next(batches, None)
    if first is None:
        raise EmptyFile
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)


def _arrow(rows: Iterable[Record], columns: dict[str, str]) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow as pa

    datasets = require("datasets", "train")
    types = {name: json_type() if kind == "json" else datasets.Value(kind) for name, kind in columns.items()}
    schema = datasets.Features(types).arrow_schema
    for batch in _batches(rows, columns):
        arrays = []
        for name, kind in columns.items():
            cells = pa.array(batch[name], pa.string() if kind == "json" else pa.type_for_alias(kind))
            arrays.append(pa.ExtensionArray.from_storage(pa.json_(), cells) if kind == "json" else cells)
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _batches(rows: Iterable[Record], columns: dict[str, str]) -> Iterator[dict[str, list[Any]]]:
    """The cells of some rows at a time, by column: at most `ROWS_A_BATCH`, fewer where they are long."""
    batch: dict[str, list[Any]] = {name: [] for name in columns}
    count = size = 0
    for row in rows:
        for name, kind in columns.items():
            value = row.get(name)
            if kind == "json" and value is not None:
                value = json.dumps(value, ensure_ascii=False)
            batch[name].append(value)
            size += len(value) if isinstance(value, str) else 8
        count += 1
        if count == ROWS_A_BATCH or size > BYTES_A_BATCH:
            yield batch
            batch, count, size = {name: [] for name in columns}, 0, 0
    if count:
        yield batch


def _digest(files: list[Path], convert: Convert | None) -> str:
    function = require("datasets.fingerprint", "train").Hasher.hash(convert) if convert else ""
    digest = hashlib.blake2b(f"{CODE} {function}".encode(), digest_size=16)
    for path in files:
        digest.update(f"\0{''.join(path.suffixes).lower()}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
