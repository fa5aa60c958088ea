"""Training and evaluation rows from `DataArguments`: one dataset, or several in one."""

import logging
from dataclasses import fields
from typing import Any

from fastkto.cli.options.arguments import DataArguments, MixturePart
from fastkto.errors import InputError, require
from fastkto.rows import read_rows
from fastkto.rows.selection import Selection

logger = logging.getLogger(__name__)


def read_splits(data: DataArguments, *, evaluate: bool) -> tuple[Any, Any]:
    """Training rows, and evaluation rows where `evaluate` asks for them, as they stand in their sources.

    With `test_split_size` there are no evaluation rows yet: they are split off by prompt, once the rows are read.
    """
    if data.mixture:
        if data.dataset_name is not None:
            logger.warning("datasets and dataset_name are both given: datasets is used.")
        return _mixture_splits(data, evaluate)
    source = data.dataset_name
    if source is None:
        raise InputError("dataset_name", None, "a data file or a Hub id", "Set it in the YAML file or as a flag.")

    def read(split: str) -> Any:
        return read_rows(source, name=data.dataset_config, split=split, streaming=data.dataset_streaming)

    evaluate = evaluate and data.test_split_size is None
    return read(data.dataset_train_split), read(data.dataset_test_split) if evaluate else None


def selection(data: DataArguments) -> Selection:
    """What is chosen of the rows once they are read."""
    return Selection(**{part.name: getattr(data, part.name) for part in fields(Selection)})


def _mixture_splits(data: DataArguments, evaluate: bool) -> tuple[Any, Any]:
    splits = ("train",) if data.test_split_size is None else ("train", "test")
    for split in (data.dataset_train_split, *([data.dataset_test_split] if evaluate else [])):
        if split not in splits:
            fix = "Set test_split_size to split some rows off, or eval_strategy to 'no'."
            raise InputError("split of datasets", split, f"one of {splits}", fix)
    parts = [_read_part(part, data.streaming) for part in data.mixture]
    return require("datasets", "train").concatenate_datasets(_shares(data, parts)), None


def _read_part(part: MixturePart, streaming: bool) -> Any:
    if part.data_dir is None and part.data_files is None:
        rows = read_rows(part.path, name=part.name, split=part.split, streaming=streaming)
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
