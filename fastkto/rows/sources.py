"""Where rows come from: local files, a folder, or a dataset of the Hub."""

import glob
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.csv_records import dialect_of
from fastkto.rows.files.folders import check_one_kind, split_files
from fastkto.rows.files.opening import KINDS, damaged, kind_of
from fastkto.rows.files.stored import Convert, EmptyFile, Record, records, stored
from fastkto.rows.labels import warn_once

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

PEEK = 1000
logger = logging.getLogger(__name__)


def read_rows(
    source: str | Path,
    *,
    name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    convert: Convert | None = None,
) -> "Dataset | IterableDataset":
    """The rows of `source` as they stand: text as text, and nested values with the keys that each row has.

    `source` is a .json, .jsonl, .csv, .tsv or .parquet file (also compressed), a pattern that such files match, a
    folder of them, a folder that `Dataset.save_to_disk` wrote, or a Hub id; `name` is the configuration of a Hub
    dataset. `split` may be a slice ("train[:10%]") where nothing is streamed. `convert` takes the records of files,
    dicts just as a file has them, and gives those to use instead. Errors: `InputError` for a source that is missing,
    empty or unreadable.
    """
    datasets = require("datasets", "train")
    path = Path(source).expanduser()
    base, _, cut = split.partition("[")
    if cut and streaming:
        raise InputError("split", split, "a whole split with streaming", "Name the split alone, or do not stream.")
    if path.is_dir() and any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        dataset = _saved(path, base)
    elif (files := _files(source, path, base)) is None or (path.is_dir() and name is not None):
        return _from_hub(source, name, split, streaming)
    elif name is not None:
        raise InputError("dataset_config", name, "none with a file: it is one of a Hub dataset's", "Leave it out.")
    else:
        dataset = _from_files(source, files, streaming, convert)
    if streaming and isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    if not streaming and len(dataset) == 0:
        raise _empty(source)
    return _cut(dataset, split, source) if cut else dataset


def read_files(files: Sequence[str | Path], *, streaming: bool = False) -> "Dataset | IterableDataset":
    """The rows of several files of one kind, as `read_rows` has them."""
    found = [file for name in files for file in _files(name, Path(name).expanduser(), "train") or [Path(name)]]
    check_one_kind(found, found[0].parent)
    return _from_files(files[0], found, streaming, None)


def _files(source: str | Path, path: Path, split: str) -> list[Path] | None:
    """The data files that `source` names; None where it can only be an id of the Hub."""
    if "://" in str(source):
        fix = "Download it, and give the file."
        raise InputError("dataset", str(source), "a file, a folder or a Hub id: addresses are not read", fix)
    if str(source) in ("-", "/dev/stdin") or (path.exists() and not path.is_file() and not path.is_dir()):
        fix = "Write it to a file first."
        raise InputError("dataset", str(source), "a file on disk: rows are read more than once", fix)
    if path.is_dir():
        return split_files(path, split)
    if path.is_file():
        files = [path]
        if kind_of(path) is None:
            sheet = "Export it as CSV." if path.suffix.lower() in (".xlsx", ".xls", ".ods") else "Convert it"
            fix = sheet if sheet.endswith(".") else f"{sheet}, or correct its ending."
            raise InputError("dataset", str(source), f"a file in {', '.join(KINDS)}", fix)
    elif matches := sorted(glob.glob(str(path), recursive=True)):
        files = [Path(match) for match in matches if kind_of(Path(match)) and Path(match).is_file()]
        left = [match for match in matches if Path(match) not in files]
        if not files:
            raise InputError("dataset", str(source), f"files in {', '.join(KINDS)}", "Correct the pattern.")
        logger.warning("%s: read from %s; not read: %s", source, ", ".join(map(str, files)), ", ".join(left) or "none")
        check_one_kind(files, path)
    elif kind_of(path) is not None or str(source).startswith((".", "/", "~")):
        raise InputError("dataset", str(source), "a file or folder that exists", f"Looked in {Path.cwd()}.")
    else:
        return None
    if split != "train":
        fix = "A file is read as split 'train'; a folder may hold others, by the names of its files."
        raise InputError("dataset", str(source), f"rows that can be read as split {split!r}", fix)
    return files


def _from_files(
    source: str | Path, files: list[Path], streaming: bool, convert: Convert | None
) -> "Dataset | IterableDataset":
    for path in files:
        if kind_of(path) == "csv" and (note := dialect_of(path).note):
            logger.warning("%s: %s", path, note)
    if not streaming:
        try:
            return stored(files, convert)
        except EmptyFile as error:
            raise _empty(source) from error
    head = list(islice(records(files, convert), PEEK))
    if not head:
        raise _empty(source)
    columns = tuple(dict.fromkeys(name for row in head for name in row))
    arguments = {"files": files, "columns": columns, "convert": convert}
    return require("datasets", "train").IterableDataset.from_generator(_stream, gen_kwargs=arguments)


def _stream(files: list[Path], columns: tuple[str, ...], convert: Convert | None) -> Iterator[Record]:
    """Rows with the keys that the first `PEEK` of them have."""
    for row in records(files, convert):
        for name in row.keys() - {*columns}:
            warn_once(logger, f"The column {name!r} first appears after row {PEEK} of a stream and is not read.")
        yield {name: row.get(name) for name in columns}


def _saved(path: Path, split: str) -> "Dataset":
    datasets = require("datasets", "train")
    try:
        saved = datasets.load_from_disk(str(path))
    except (ValueError, OSError, KeyError) as error:
        raise damaged(path, error) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            fix = f"The folder has: {', '.join(saved)}."
            raise InputError("dataset", str(path), f"rows that can be read as split {split!r}", fix)
        return _in_place(saved[split])
    if split != "train":
        fix = "The folder holds one dataset, without splits: read it as 'train'."
        raise InputError("dataset", str(path), f"rows that can be read as split {split!r}", fix)
    return _in_place(saved)


def _in_place(saved: "Dataset") -> "Dataset":
    """The same rows, memory-mapped, but without their path: `datasets` would write its caches beside them."""
    datasets = require("datasets", "train")
    table = require("datasets.table", "train").InMemoryTable(saved.data.table)
    return datasets.Dataset(table, info=saved.info, split=saved.split)


def _cut(dataset: "Dataset", split: str, source: str | Path) -> "Dataset":
    """What a slice such as "train[:10%]" names, as `datasets` reads it."""
    base = split.partition("[")[0]
    try:
        instruction = require("datasets", "train").ReadInstruction.from_spec(split)
        [part] = instruction.to_absolute({base: len(dataset)})
    except (ValueError, AssertionError) as error:
        fix = f"The reader says: {error}."
        raise InputError("dataset", str(source), f"rows that can be read as split {split!r}", fix) from error
    if part.from_ >= part.to:
        raise _empty(source)
    return dataset.select(range(part.from_, part.to))


def _from_hub(source: str | Path, name: str | None, split: str, streaming: bool) -> Any:
    datasets = require("datasets", "train")
    try:
        dataset = datasets.load_dataset(str(source), name=name, split=split, streaming=streaming)
        if next(iter(dataset), None) is None:
            raise _empty(source)
    except InputError:
        raise
    except (ValueError, OSError, EOFError, StopIteration, datasets.exceptions.DatasetsError) as error:
        cause = _root(error)
        if isinstance(cause, StopIteration) or "no data" in str(cause) or "No columns" in str(cause):
            raise _empty(source) from error
        raise InputError(
            "dataset", str(source), f"rows that can be read as split {split!r}", f"The reader says: {cause}."
        ) from error
    return dataset


def _empty(source: str | Path) -> InputError:
    return InputError("dataset", str(source), "at least one row", "The file or split is empty.")


def _root(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
