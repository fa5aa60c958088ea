"""Training and evaluation rows from `DataArguments`: one dataset, or several in one."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fastkto.cli.options.arguments import DataArguments, MixturePart
from fastkto.errors import InputError, require
from fastkto.rows import RowOptions, normalise, read_rows
from fastkto.rows.files.opening import kind_of
from fastkto.rows.normalise import normalise_the_good
from fastkto.rows.readers import read_dataset, say
from fastkto.rows.selection import Selection
from fastkto.rows.shapes.joining import check_names, join, options_for
from fastkto.rows.shapes.looking import column_names
from fastkto.rows.sources import read_files

logger = logging.getLogger(__name__)


def read_splits(data: DataArguments, options: RowOptions, *, evaluate: bool) -> tuple[Any, Any]:
    """Training rows, and evaluation rows where `evaluate` asks for them, normalised.

    With `test_split_size` there are no evaluation rows yet: they are split off the training rows by prompt.
    """
    evaluate = evaluate and (data.test_split_size is None or bool(data.mixture))
    if data.mixture:
        if data.dataset_name is not None:
            logger.warning("datasets and dataset_name are both given: datasets is used.")
        _check_splits(data, evaluate)
        return _mixture(data, options), None
    source = data.dataset_name
    if source is None:
        raise InputError("dataset_name", None, "a data file or a Hub id", "Set it in the YAML file or as a flag.")

    def read(split: str) -> Any:
        return read_rows(source, name=data.dataset_config, split=split, streaming=data.dataset_streaming)

    train, held_out = read(data.dataset_train_split), read(data.dataset_test_split) if evaluate else None
    rows = normalise(train, options)
    return rows, None if held_out is None else normalise(held_out, options, dataset_name="eval")


def selection(data: DataArguments) -> Selection:
    """What is chosen of the rows once they are read."""
    return Selection(**{part.name: getattr(data, part.name) for part in fields(Selection)})


def _check_splits(data: DataArguments, evaluate: bool) -> None:
    """Refuse a split that a mixture does not have."""
    splits = ("train",) if data.test_split_size is None else ("train", "test")
    for split in (data.dataset_train_split, *([data.dataset_test_split] if evaluate else [])):
        if split not in splits:
            fix = "Set test_split_size to split some rows off, or eval_strategy to 'no'."
            raise InputError("split of datasets", split, f"one of {splits}", fix)


def _mixture(data: DataArguments, options: RowOptions) -> Any:
    """Each part normalised by its own reader and columns, then joined."""
    parts = _shares(data, [_read_part(part, data.streaming) for part in data.mixture])
    names = [f"train ({part.path})" if len(parts) > 1 else "train" for part in data.mixture]
    columns = [column_names(part, name) for part, name in zip(parts, names, strict=True)]
    check_names(options, columns)
    readers = [part.reader or options.reader for part in data.mixture]
    return join(
        [
            _normalised(rows, options_for(replace(options, reader=reader), own), name)
            for rows, reader, own, name in zip(parts, readers, columns, names, strict=True)
        ],
        weighted=options.weight_column is not None,
    )


def _normalised(rows: Any, options: RowOptions, name: str) -> Any:
    reading = None
    if options.reader is not None:
        rows, options, reading = read_dataset(rows, options, dataset_name=name)
        say(reading, name)
        options = options_for(options, column_names(rows, name))
    rows, error = normalise_the_good(rows, options, dataset_name=name, reading=reading)
    if error is not None:
        raise error
    return rows


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
