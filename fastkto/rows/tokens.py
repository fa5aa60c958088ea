"""Rows of text or messages -> token ids of prompt and completion."""

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.files.cells import table_rows
from fastkto.rows.files.fingerprint import code_digest
from fastkto.rows.labels import LabelReader, read_weight, warn_once
from fastkto.rows.shapes.faults import NO_TOKEN, Fault, Unusable, count_faults, with_all
from fastkto.rows.shapes.looking import as_written, column_names
from fastkto.rows.shapes.summary import (
    TOO_LONG,
    TokenReport,
    diverged_warning,
    log_report,
    plain_warning,
    repeated,
    weights_line,
)
from fastkto.rows.templates.encoding import common_prefix, encode_row, prompt_key, read_chat_template, tokenize_row

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

CODE = code_digest(
    "fastkto.rows.templates.encoding",
    "fastkto.rows.files.cells",
    "fastkto.rows.shapes.messages",
    "fastkto.rows.templates.long_text",
    "fastkto.rows.templates.parts",
    __name__,
)
__all__ = ["COLUMNS", "TokenReport", "prompt_key", "tokenize", "tokenize_row", "tokenize_with_report"]

COLUMNS = ("prompt_ids", "completion_ids", "label", "row_id", "conversation", "prompt_key")
WEIGHT = "weight"
"""The column beside these of rows that have a weight each."""
logger = logging.getLogger(__name__)
_DIVERGED: set[str] = set()
"""Names of the streams that were warned of."""


def tokenize(
    dataset: "Dataset | IterableDataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    num_proc: int | None = None,
    dataset_name: str = "train",
    chat_template: str | None = None,
) -> "Dataset | IterableDataset":
    """What `normalise` gives, as token ids: `dataset.map(tokenize_row)`, without rows whose prompt fills `max_length`.

    Columns: prompt_ids, completion_ids (lists of ids), label, row_id, conversation, prompt_key (int64 from blake2b of
    the tokenised prompt; rows that share it are never paired), and weight (float) where the rows have one. Ids are
    TRL's. Completions are not cut here: the collator cuts [prompt | completion] from the right. The result does not
    depend on `num_proc`; a stream stays lazy; a tokenised dataset passes through. Errors: `InputError` naming the row
    or the field.
    """
    if isinstance(dataset, require("datasets", "train").IterableDataset):
        encode = _Encode(tokenizer, read_chat_template(chat_template), dataset_name, max_length)
        columns = column_names(dataset, dataset_name)
        kept = _kept(columns)
        lazily = _Lazily(encode, as_written(dataset))
        stream = dataset.map(lazily, with_indices=True, remove_columns=[c for c in columns if c not in kept])
        return stream.filter(_Fits(max_length, dataset_name)).select_columns(kept)
    return tokenize_with_report(
        dataset,
        tokenizer,
        max_length=max_length,
        num_proc=num_proc,
        dataset_name=dataset_name,
        chat_template=chat_template,
    )[0]


def tokenize_with_report(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", **options: Any) -> Any:
    """`tokenize` for a dataset that is not streamed, and what became of its rows."""
    rows, report, error = tokenize_the_good(dataset, tokenizer, **options)
    if error is not None:
        raise error
    return rows, report


def tokenize_the_good(
    dataset: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    num_proc: int | None = None,
    dataset_name: str = "train",
    chat_template: str | None = None,
) -> tuple["Dataset", TokenReport, InputError | None]:
    """`tokenize_with_report` without the rows that are at fault, and the error that it would raise because of them."""
    encode = _Encode(tokenizer, read_chat_template(chat_template), dataset_name, max_length)
    column_names(dataset, dataset_name)
    dataset = dataset.with_format(None)
    kept_columns = _kept(dataset.column_names)
    encoded = dataset.with_format("arrow").map(
        _Eagerly(encode, dataset.features),
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(kept_columns),
        num_proc=num_proc if num_proc != 1 else None,
        desc=f"Tokenizing {dataset_name} dataset",
    )
    encoded = encoded.with_format(None)
    limit = max_length or sys.maxsize
    names = ("prompt_length", "length", "diverged", "fault", "row_id", "plain", "prompt_key", "pair_key", "label")
    columns = {name: encoded[name][:] for name in names}
    prompts, lengths, kinds = columns["prompt_length"], columns["length"], columns["fault"]
    good = [i for i, kind in enumerate(kinds) if not kind]
    keep = [i for i in good if prompts[i] < limit]
    diverged = [text for text in columns["diverged"] if text]
    fatal = count_faults(zip(columns["row_id"], kinds, strict=True), frozenset())
    long = ((columns["row_id"][i], TOO_LONG) for i in good if prompts[i] >= limit)
    kept = {name: [columns[name][i] for i in keep] for name in ("row_id", "prompt_key", "pair_key", "label")}
    weights = encoded[WEIGHT][:] if WEIGHT in kept_columns else []
    again = repeated(kept["row_id"], kept["pair_key"], kept["label"])
    report = TokenReport(
        rows=len(encoded),
        kept=len(keep),
        dropped=len(good) - len(keep),
        cut=sum(lengths[i] > limit for i in keep),
        diverged=len(diverged),
        diverged_text=diverged[0] if diverged else "",
        plain=sum(columns["plain"]),
        prompts=len({*kept["prompt_key"]}),
        desirable=sum(kept["label"]),
        duplicates=len(keep) - len({*kept["pair_key"]}),
        contradictions=len({*zip(kept["pair_key"], kept["label"], strict=True)}) - len({*kept["pair_key"]}),
        faults=(*fatal, *count_faults(long, frozenset({TOO_LONG})), *again),
        weights=weights_line([weights[i] for i in keep]) if weights else "",
    )
    error = _error(encode, dataset, fatal, kinds)
    if not keep and error is None:
        raise InputError(
            "max_length",
            max_length,
            f"more than the prompt of at least one {dataset_name} row (the shortest has {min(prompts)} tokens)",
            "Raise max_length or shorten the prompts.",
        )
    log_report(report, max_length, dataset_name)
    rows = encoded.select_columns(kept_columns)
    return (rows.select(keep) if len(keep) < len(rows) else rows), report, error


@dataclass(frozen=True)
class _Encode:
    """One row -> its ids; `code` makes the cache of `datasets` notice a new version."""

    tokenizer: "PreTrainedTokenizerBase"
    chat_template: str | None
    dataset_name: str
    max_length: int | None
    code: str = CODE

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        where = f"{self.dataset_name} row {row.get('row_id', index)}"
        diverged, plain = "", False
        if "prompt_ids" in row:
            prompt, completion = (
                _ids(row[key], f"{where}, column {key!r}") for key in ("prompt_ids", "completion_ids")
            )
            key = row.get("prompt_key", prompt_key(prompt))
        else:
            plain = isinstance(row["prompt"], str) and bool(self.chat_template or self.tokenizer.chat_template)
            alone, together = encode_row(row, self.tokenizer, self.chat_template, where, self.max_length)
            start = common_prefix(alone, together)
            prompt, completion, key = together[:start], together[start:], prompt_key(alone)
            diverged = str(self.tokenizer.decode(alone[start:])) if start < len(alone) else ""
        fills = self.max_length is not None and len(prompt) >= self.max_length
        if len(completion) - (not prompt) < 1 and not fills:
            fix = "Remove the row. (The first token after an empty prompt is never scored.)"
            raise Unusable(f"{where}, completion", completion, "at least one token to score", fix, NO_TOKEN)
        weight = {WEIGHT: read_weight(row[WEIGHT], f"{where}, column {WEIGHT!r}")} if WEIGHT in row else {}
        return weight | {
            "prompt_ids": prompt,
            "completion_ids": completion,
            "label": LabelReader()(row.get("label"), f"{where}, column 'label'"),
            "row_id": row.get("row_id", index),
            "conversation": row.get("conversation", index),
            "prompt_key": key,
            "pair_key": prompt_key([len(prompt), *prompt, *completion]),
            "prompt_length": len(prompt),
            "length": len(prompt) + len(completion),
            "diverged": diverged,
            "plain": plain,
        }


@dataclass(frozen=True)
class _Lazily:
    """One row of a stream -> its ids."""

    encode: _Encode
    as_written: Callable[[dict[str, Any]], dict[str, Any]]

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        return self.encode(self.as_written(row), index)


@dataclass(frozen=True)
class _Eagerly:
    """The rows of a table -> a table of ids; a row at fault has only its kind of fault."""

    encode: _Encode
    features: Any

    def __call__(self, table: Any, indices: list[int]) -> Any:
        import pyarrow as pa

        records = []
        for row, index in zip(table_rows(table, self.features), indices, strict=True):
            try:
                records.append(self.encode(row, index) | {"fault": ""})
            except Unusable as error:
                records.append(_NOTHING | {"row_id": row.get("row_id", index), "fault": error.kind})
        schema = _features(_kept(self.features)).arrow_schema
        return pa.table([pa.array([r[f.name] for r in records], f.type) for f in schema], schema)


_NOTHING = {"prompt_ids": [], "completion_ids": [], "label": False, "conversation": 0, "prompt_key": 0, "pair_key": 0}
_NOTHING |= {"prompt_length": 0, "length": 0, "diverged": "", "plain": False, WEIGHT: 1.0}


def _error(encode: _Encode, dataset: "Dataset", faults: tuple[Fault, ...], kinds: list[str]) -> InputError | None:
    """The error of the first row that is at fault."""
    if not faults:
        return None
    first = next(i for i, kind in enumerate(kinds) if kind)
    [row] = table_rows(dataset.with_format("arrow")[[first]], dataset.features)
    try:
        encode(row, first)
    except Unusable as error:
        return with_all(error, faults)
    raise AssertionError(f"row {first} of {encode.dataset_name} has a fault that is not there again")


@dataclass(frozen=True)
class _Fits:
    """Whether a streamed row leaves room for its completion; warns at the first that does not."""

    max_length: int | None
    dataset_name: str

    def __call__(self, row: dict[str, Any]) -> bool:
        if row["plain"]:
            warn_once(logger, plain_warning(self.dataset_name))
        if row["diverged"]:
            _warn_diverged(row["diverged"], self.dataset_name)
        fits = self.max_length is None or row["prompt_length"] < self.max_length
        if not fits:
            text = f"Rows of {self.dataset_name} whose prompt fills max_length={self.max_length} are dropped."
            warn_once(logger, text)
        return fits


def _ids(cell: Any, where: str) -> list[int]:
    if not isinstance(cell, list) or not all(isinstance(token, int) and token >= 0 for token in cell):
        raise Unusable(where, cell, "a list of token ids", "Tokenise the row again, or pass text.")
    return cell


def _kept(columns: Iterable[str]) -> list[str]:
    """The columns that come out of rows with these."""
    return [*COLUMNS, *(name for name in columns if name == WEIGHT)]


def _features(columns: list[str]) -> Any:
    datasets = require("datasets", "train")
    number, ids = datasets.Value("int64"), datasets.Sequence(datasets.Value("int32"))
    text, flag = datasets.Value("string"), datasets.Value("bool")
    features = dict.fromkeys((*columns, "pair_key", "prompt_length", "length"), number)
    features |= {WEIGHT: datasets.Value("float64")} if WEIGHT in columns else {}
    features |= {"prompt_ids": ids, "completion_ids": ids, "label": flag, "plain": flag}
    return datasets.Features(features | {"diverged": text, "fault": text})


def _warn_diverged(text: str, dataset_name: str) -> None:
    """For the first row of a stream; the text of no row is kept."""
    if dataset_name not in _DIVERGED:
        _DIVERGED.add(dataset_name)
        logger.warning(diverged_warning(text, dataset_name))
