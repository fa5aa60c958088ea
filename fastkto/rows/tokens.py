"""Rows of text or messages -> token ids of prompt and completion."""

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastkto.errors import InputError, require
from fastkto.rows.encoding import common_prefix, encode_row, prompt_key, read_chat_template, tokenize_row
from fastkto.rows.fingerprint import code_digest
from fastkto.rows.labels import LabelReader, warn_once
from fastkto.rows.normalise import column_names

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

CODE = code_digest("fastkto.rows.encoding", __name__)
__all__ = ["COLUMNS", "TokenReport", "prompt_key", "tokenize", "tokenize_row", "tokenize_with_report"]

COLUMNS = ("prompt_ids", "completion_ids", "label", "row_id", "conversation", "prompt_key")
logger = logging.getLogger(__name__)
_DIVERGED: set[str] = set()
"""Names of the streams that were warned of."""


@dataclass(frozen=True)
class TokenReport:
    """What became of the rows: `rows` came, `dropped` had a prompt that fills max_length, `cut` have a completion cut
    at max_length, and `diverged` have a prompt whose end (`diverged_text` in the first one) is tokenised otherwise
    before a completion than alone."""

    rows: int
    dropped: int
    cut: int
    diverged: int
    diverged_text: str


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
    the tokenised prompt; rows that share it are never paired). Ids are TRL's. Completions are not cut here: the
    collator cuts [prompt | completion] from the right. The result does not depend on `num_proc`; a stream stays lazy;
    a tokenised dataset passes through. Errors: `InputError` naming the row or the field.
    """
    if isinstance(dataset, require("datasets", "train").IterableDataset):
        encode = _Encode(tokenizer, read_chat_template(chat_template), dataset_name)
        columns = column_names(dataset, dataset_name)
        stream = dataset.map(encode, with_indices=True, remove_columns=[c for c in columns if c not in COLUMNS])
        return stream.filter(_Fits(max_length, dataset_name)).select_columns(list(COLUMNS))
    return tokenize_with_report(
        dataset,
        tokenizer,
        max_length=max_length,
        num_proc=num_proc,
        dataset_name=dataset_name,
        chat_template=chat_template,
    )[0]


def tokenize_with_report(
    dataset: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    num_proc: int | None = None,
    dataset_name: str = "train",
    chat_template: str | None = None,
) -> tuple["Dataset", TokenReport]:
    """`tokenize` for a dataset that is not streamed, and what became of its rows."""
    encode = _Encode(tokenizer, read_chat_template(chat_template), dataset_name)
    encoded = dataset.with_format(None).map(
        encode,
        with_indices=True,
        remove_columns=column_names(dataset, dataset_name),
        features=_features(),
        num_proc=num_proc if num_proc != 1 else None,
        desc=f"Tokenizing {dataset_name} dataset",
    )
    limit = max_length or sys.maxsize
    prompts, lengths, texts = (encoded[column][:] for column in ("prompt_length", "length", "diverged"))
    keep = [i for i, prompt in enumerate(prompts) if prompt < limit]
    diverged = [text for text in texts if text]
    report = TokenReport(
        rows=len(encoded),
        dropped=len(encoded) - len(keep),
        cut=sum(lengths[i] > limit for i in keep),
        diverged=len(diverged),
        diverged_text=diverged[0] if diverged else "",
    )
    if not keep:
        raise InputError(
            "max_length",
            max_length,
            f"more than the prompt of at least one {dataset_name} row (the shortest has {min(prompts)} tokens)",
            "Raise max_length or shorten the prompts.",
        )
    _log(report, max_length, dataset_name)
    rows = encoded.select_columns(list(COLUMNS))
    return (rows.select(keep) if report.dropped else rows), report


@dataclass(frozen=True)
class _Encode:
    """The function that `datasets` maps over rows; `code` makes its cache notice a new version."""

    tokenizer: "PreTrainedTokenizerBase"
    chat_template: str | None
    dataset_name: str
    code: str = CODE

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        where = f"{self.dataset_name} row {row.get('row_id', index)}"
        diverged = ""
        if "prompt_ids" in row:
            prompt, completion = (
                _ids(row[key], f"{where}, column {key!r}") for key in ("prompt_ids", "completion_ids")
            )
            key = row.get("prompt_key", prompt_key(prompt))
        else:
            alone, together = encode_row(row, self.tokenizer, self.chat_template, where)
            start = common_prefix(alone, together)
            prompt, completion, key = together[:start], together[start:], prompt_key(alone)
            diverged = str(self.tokenizer.decode(alone[start:])) if start < len(alone) else ""
        if len(completion) - (not prompt) < 1:
            fix = "Remove the row. (The first token after an empty prompt is never scored.)"
            raise InputError(f"{where}, completion", completion, "at least one token to score", fix)
        return {
            "prompt_ids": prompt,
            "completion_ids": completion,
            "label": LabelReader()(row.get("label"), f"{where}, column 'label'"),
            "row_id": row.get("row_id", index),
            "conversation": row.get("conversation", index),
            "prompt_key": key,
            "prompt_length": len(prompt),
            "length": len(prompt) + len(completion),
            "diverged": diverged,
        }


@dataclass(frozen=True)
class _Fits:
    """Whether a streamed row leaves room for its completion; warns at the first that does not."""

    max_length: int | None
    dataset_name: str

    def __call__(self, row: dict[str, Any]) -> bool:
        if row["diverged"]:
            _warn_diverged(row["diverged"], self.dataset_name)
        fits = self.max_length is None or row["prompt_length"] < self.max_length
        if not fits:
            text = f"Rows of {self.dataset_name} whose prompt fills max_length={self.max_length} are dropped."
            warn_once(logger, text)
        return fits


def _ids(cell: Any, where: str) -> list[int]:
    if not isinstance(cell, list) or not all(isinstance(token, int) and token >= 0 for token in cell):
        raise InputError(where, cell, "a list of token ids", "Tokenise the row again, or pass text.")
    return cell


def _features() -> Any:
    datasets = require("datasets", "train")
    number, ids = datasets.Value("int64"), datasets.Sequence(datasets.Value("int32"))
    features = dict.fromkeys((*COLUMNS, "prompt_length", "length"), number)
    features |= {"prompt_ids": ids, "completion_ids": ids}
    return datasets.Features(features | {"label": datasets.Value("bool"), "diverged": datasets.Value("string")})


def _diverged(text: str, dataset_name: str) -> str:
    return (
        f"A prompt of {dataset_name} is tokenised differently alone and before its completion. The completion starts "
        f"where the two diverge, and this end of the prompt is left out: {text!r}. At inference the model will see "
        "it: use a chat template that renders a prompt alike in both cases, or end prompts on a token boundary."
    )


def _warn_diverged(text: str, dataset_name: str) -> None:
    """For the first row of a stream; the text of no row is kept."""
    if dataset_name not in _DIVERGED:
        _DIVERGED.add(dataset_name)
        logger.warning(_diverged(text, dataset_name))


def _log(report: TokenReport, max_length: int | None, dataset_name: str) -> None:
    if report.diverged:
        logger.warning(
            "%s (%d of %d rows)", _diverged(report.diverged_text, dataset_name), report.diverged, report.rows
        )
    if report.dropped:
        text = "%d of %d %s rows dropped: the prompt alone fills max_length=%s"
        logger.warning(text, report.dropped, report.rows, dataset_name, max_length)
    if report.cut:
        text = "%d of %d %s completions are cut at max_length=%s"
        logger.info(text, report.cut, report.rows, dataset_name, max_length)
