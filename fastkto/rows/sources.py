"""Where rows come from: a local file, a folder, or a dataset of the Hub."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}


def read_rows(
    source: str | Path, *, name: str | None = None, split: str = "train", streaming: bool = False
) -> "Dataset | IterableDataset":
    """The rows of `source` as they stand: `datasets.load_dataset(source, name, split=split, streaming=streaming)`.

    `source` is a .json, .jsonl, .csv or .parquet file (also compressed), a folder of such files, or a Hub id; `name`
    is the configuration of a Hub dataset. Errors: `InputError` for a source that is missing, empty or unreadable.
    """
    datasets = require("datasets", "train")
    path = Path(source).expanduser()
    builder = BUILDERS.get(_suffix(path))
    arguments: dict[str, Any] = {"path": str(source), "name": name}
    if path.is_file():
        if builder is None:
            raise InputError("dataset", str(source), f"a file in {_kinds()}", "Convert it, or correct its ending.")
        if path.stat().st_size == 0:
            raise _empty(source)
        arguments = {"path": builder, "data_files": {"train": str(path)}}
    elif path.is_dir():
        if not any(_suffix(file) in BUILDERS for file in path.rglob("*")):
            raise InputError("dataset", str(source), f"a folder with files in {_kinds()}", "Name another folder.")
        arguments = {"path": str(path), "name": name}
    elif builder is not None or str(source).startswith((".", "/", "~")):
        raise InputError("dataset", str(source), "a file or folder that exists", f"Looked in {Path.cwd()}.")
    try:
        dataset = datasets.load_dataset(**arguments, split=split, streaming=streaming)
        if next(iter(dataset), None) is None:
            raise _empty(source)
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zlib.error, StopIteration, datasets.exceptions.DatasetsError) as error:
        cause = _root(error)
        if isinstance(cause, StopIteration) or "no data" in str(cause) or "No columns" in str(cause):
            raise _empty(source) from error
        raise InputError(
            "dataset", str(source), f"rows that can be read as split {split!r}", f"The reader says: {cause}."
        ) from error
    return dataset


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def _kinds() -> str:
    return ", ".join(BUILDERS)


def _empty(source: str | Path) -> InputError:
    return InputError("dataset", str(source), "at least one row", "The file or split is empty.")


def _root(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
