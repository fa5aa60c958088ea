"""Training and evaluation rows from `DataArguments`: one dataset, or several in one."""

import logging
from pathlib import Path
from typing import Any

from fastkto.cli.arguments import DataArguments, MixturePart
from fastkto.errors import InputError, require
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.files.opening import kind_of
from fastkto.rows.shapes.joining import check_names, join, options_for
from fastkto.rows.shapes.looking import column_names
from fastkto.rows.sources import read_files

logger = logging.getLogger(__name__)


def read_splits(data: DataArguments, options: RowOptions, *, evaluate: bool, seed: int) -> tuple[Any, Any]:
    """Training rows, and evaluation rows where `evaluate` asks for them, normalised."""
    if data.mixture:
        if data.dataset_name is not None:
            logger.warning("datasets and dataset_name are both given: datasets is used.")
        return _mixture_splits(data, options, evaluate, seed)
    source = data.dataset_name
    if source is None:
        raise InputError("dataset_name", None, "a data file or a Hub id", "Set it in the YAML file or as a flag.")

    def read(split: str) -> Any:
        return read_rows(source, name=data.dataset_config, split=split, streaming=data.dataset_streaming)

    train, held_out = read(data.dataset_train_split), read(data.dataset_test_split) if evaluate else None
    rows = normalise(train, options)
    return rows, None if held_out is None else normalise(held_out, options, dataset_name="eval")


def _mixture_splits(data: DataArguments, options: RowOptions, evaluate: bool, seed: int) -> tuple[Any, Any]:
    """Each part normalised by its own columns, then joined; an evaluation split takes whole source rows."""
    parts = _shares(data, [_read_part(part, data.streaming) for part in data.mixture])
    names = [f"train ({part.path})" if len(parts) > 1 else "train" for part in data.mixture]
    columns = [column_names(part, name) for part, name in zip(parts, names, strict=True)]
    check_names(options, columns)
    rows = join(
        [
            normalise(part, options_for(options, own), dataset_name=name)
            for part, own, name in zip(parts, columns, names, strict=True)
        ]
    )
    splits = {"train": rows}
    if data.test_split_size is not None:
        if data.streaming:
            raise InputError("test_split_size", data.test_split_size, "null with streaming", "Leave one of them out.")
        size = data.test_split_size if data.test_split_size < 1 else int(data.test_split_size)
        splits = _split(rows, sum(map(len, parts)), size, seed)
    wanted = [data.dataset_train_split, *([data.dataset_test_split] if evaluate else [])]
    for split in wanted:
        if split not in splits:
            fix = "Set test_split_size to split some rows off, or eval_strategy to 'no'."
            raise InputError("split of datasets", split, f"one of {tuple(splits)}", fix)
    return splits[wanted[0]], splits[wanted[1]] if evaluate else None


def _split(rows: Any, sources: int, size: float, seed: int) -> dict[str, Any]:
    """Rows in the order that `train_test_split` gives the rows that they come from."""
    numbers = require("datasets", "train").Dataset.from_dict({"row": range(sources)})
    row_ids = rows["row_id"][:] if "row_id" in rows.column_names else range(len(rows))
    made: dict[int, list[int]] = {}
    for i, row_id in enumerate(row_ids):
        made.setdefault(row_id, []).append(i)
    return {
        name: rows.select([i for number in part["row"] for i in made.get(number, [])])
        for name, part in numbers.train_test_split(test_size=size, seed=seed).items()
    }


def _read_part(part: MixturePart, streaming: bool) -> Any:
    files = part.data_files[part.split] if isinstance(part.data_files, dict) else part.data_files
    files = [files] if isinstance(files, str) else files or []
    if part.data_dir is None and part.data_files is None:
        rows = read_rows(part.path, name=part.name, split=part.split, streaming=streaming)
    elif files and part.split == "train" and all(kind_of(Path(file)) == part.path for file in files):
        rows = read_files(files, streaming=streaming)
    else:
        rows = require("datasets", "train").load_dataset(
            part.path,
            name=part.name,
            data_dir=part.data_dir,
            data_files=part.data_files,
            split=part.split,
            streaming=streaming,
        )
    return rows if part.columns is None else rows.select_columns(part.columns)


def _shares(data: DataArguments, parts: list[Any]) -> list[Any]:
    """The first rows of each part, so that their numbers have the ratio of `fraction` and none is oversampled."""
    fractions = [part.fraction for part in data.mixture if part.fraction is not None]
    if not fractions:
        return parts
    if data.streaming or len(fractions) < len(parts) or min(fractions) < 0 or not any(fractions):
        fix = "Give every dataset one, without streaming, or none."
        raise InputError("fraction", fractions, "a share of every dataset, not all of them 0", fix)
    shares = [fraction / sum(fractions) for fraction in fractions]
    total = min(len(part) / share for part, share in zip(parts, shares, strict=True) if share > 0)
    return [part.select(range(round(share * total))) for part, share in zip(parts, shares, strict=True)]
