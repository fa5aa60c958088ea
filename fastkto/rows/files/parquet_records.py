"""The records of a Parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import table_rows
from fastkto.rows.files.opening import damaged, open_bytes

if TYPE_CHECKING:
    import pyarrow


def parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `path` as they were written."""
    features = None
    for batch in parquet_batches([path]):
        features = features or require("datasets", "train").Features.from_arrow_schema(batch.schema)
        yield from table_rows(batch, features)


def parquet_batches(files: list[Path], rows: int = 1000) -> Iterator["pyarrow.RecordBatch"]:
    """The batches of several files, all under the schema of the first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = None
    for path in files:
        with open_bytes(path) as file:
            try:
                parquet = pq.ParquetFile(file)
                schema = schema or parquet.schema_arrow
                if parquet.schema_arrow != schema:
                    unlike = {f"{each.name} {each.type}" for each in {*schema} ^ {*parquet.schema_arrow}}
                    fix = f"List the files under `datasets`. Unlike: {', '.join(sorted(unlike))}."
                    raise InputError("dataset", str(path), f"the schema of {files[0].name}", fix)
                for batch in parquet.iter_batches(batch_size=rows):
                    yield batch.replace_schema_metadata(schema.metadata)
            except pa.ArrowInvalid as error:
                raise damaged(path, error) from error
