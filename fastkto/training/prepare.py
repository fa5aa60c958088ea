"""A dataset as it comes -> tokenised, pairable, its class balance looked at. Training, evaluation and preview alike."""

from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from fastkto.config import KTOConfig
from fastkto.errors import InputError, InputTypeError, require
from fastkto.losses.kto import check_rows_to_pair, uses_kl
from fastkto.pairs import PairableStream
from fastkto.pairs.balance import (
    ONE_CLASS_LIMIT,
    SHUFFLED,
    auto_desirable_weight,
    batch_size_for,
    obeys_rule,
    one_class_share,
    weight_range,
)
from fastkto.pairs.conflicts import check_pairable
from fastkto.rows import RowOptions, normalise, tokenize
from fastkto.rows.shapes.summary import Summary, summary_of
from fastkto.rows.tokens import tokenize_with_report

logger = logging.get_logger(__name__)

IDS = ("prompt_ids", "completion_ids")


@dataclass(frozen=True)
class Prepared:
    """Rows that a dataloader can take, how many of each class, and what is known of them; None where streaming hides
    it."""

    rows: Any
    desirable: int | None
    undesirable: int | None
    summary: Summary | None
    plain: bool = False
    """Most rows are text that goes past the model's chat template."""

    def desirable_weight(self, args: KTOConfig) -> float:
        """The weight given, or for "auto" the one that the paper's rule allows for these rows; warns outside it."""
        counts = self.desirable, self.undesirable
        if not isinstance(args.desirable_weight, str):
            if counts[0] and counts[1]:
                _warn_outside_rule(counts[0], counts[1], args.desirable_weight, args.undesirable_weight)
            return args.desirable_weight
        if counts[0] is None or counts[1] is None:
            fix = "Set the weight yourself: desirable_weight * desirable rows = 1 to 1.5 * undesirable rows."
            raise InputError(
                "desirable_weight", "auto", "a number with streaming data, whose rows cannot be counted", fix
            )
        weight = auto_desirable_weight(counts[0], counts[1], args.undesirable_weight)
        logger.warning(
            f'desirable_weight="auto" is {weight:.4g} for {counts[0]} desirable, {counts[1]} undesirable rows.'
        )
        return weight


def prepare(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, args: KTOConfig, vocabulary: int, *, name: str, batch_size: int
) -> Prepared:
    """Normalise and tokenise a dataset, check that its batches can be paired, and look at its classes.

    `vocabulary`: how many token ids the model has.
    """
    datasets = require("datasets", "train")
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        fix = "Load the data with fastkto.read_rows(path) or datasets.load_dataset(...), and choose a split."
        raise InputTypeError(f"{name}_dataset", type(dataset).__name__, "a datasets.Dataset or IterableDataset", fix)
    source = normalise(dataset, RowOptions(), dataset_name=name)
    options: dict[str, Any] = {"max_length": args.max_length, "num_proc": args.dataset_num_proc, "dataset_name": name}
    summary, plain = None, False
    if isinstance(source, datasets.IterableDataset):
        rows: Any = tokenize(source, tokenizer, **options)
    else:
        rows, report = tokenize_with_report(source, tokenizer, **options)
        summary, plain = summary_of(source, report, name), 2 * report.plain > report.rows
    rows = _within_vocabulary(rows, vocabulary)
    with_kl = uses_kl(args.loss_type)
    if with_kl:
        check_rows_to_pair(f"per_device_{'train' if name == 'train' else 'eval'}_batch_size", batch_size)
    if isinstance(rows, datasets.IterableDataset):
        if args.precompute_ref_log_probs:
            fix = "Load the data without streaming, or set precompute_ref_log_probs to False."
            raise InputError("precompute_ref_log_probs", True, "False with streaming data", fix)
        stream: IterableDataset = PairableStream(rows, batch_size, world_size=args.world_size)
        return Prepared(stream if with_kl else rows, None, None, None)
    if with_kl:
        check_pairable(rows["prompt_key"], rows["conversation"], batch_size, world_size=args.world_size)
    desirable = sum(rows["label"])
    prepared = Prepared(rows, desirable, len(rows) - desirable, summary, plain)
    if name == "train" and args.train_sampling_strategy in SHUFFLED:
        _warn_one_class(desirable, len(rows) - desirable, batch_size)
    return prepared


def prepare_eval(
    rows: Any, tokenizer: PreTrainedTokenizerBase, args: KTOConfig, vocabulary: int, *, name: str = "eval"
) -> Any:
    """Rows to evaluate on, or a dict of several, as a dataloader takes them; again does no harm."""
    if rows is None or isinstance(rows, PairableStream):
        return rows
    if isinstance(rows, dict):
        return {name: prepare_eval(each, tokenizer, args, vocabulary, name=name) for name, each in rows.items()}
    return prepare(rows, tokenizer, args, vocabulary, name=name, batch_size=args.per_device_eval_batch_size).rows


def _within_vocabulary(rows: Any, vocabulary: int) -> Any:
    """The rows, none of which may hold a token id that the model has not; a stream's are looked at as they come."""
    if not hasattr(rows, "__len__"):
        return rows.map(_row_within_vocabulary, fn_kwargs={"vocabulary": vocabulary})
    for column in IDS:
        for table in rows.select_columns(["row_id", column]).with_format("arrow").iter(batch_size=1000):
            ids = table[column].combine_chunks()
            if ids.flatten().to_numpy(zero_copy_only=False).max(initial=0) >= vocabulary:
                for row_id, held in zip(table["row_id"].to_pylist(), ids.to_pylist(), strict=True):
                    _row_within_vocabulary({"row_id": row_id, column: held}, vocabulary)
    return rows


def _row_within_vocabulary(row: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    for column in IDS:
        if (highest := max(row.get(column, ()), default=0)) >= vocabulary:
            fix = "Tokenise the rows with this model's tokenizer."
            raise InputError(f"row {row['row_id']}, column {column!r}", highest, f"ids below {vocabulary}", fix)
    return row


def _warn_outside_rule(desirable: int, undesirable: int, desirable_weight: float, undesirable_weight: float) -> None:
    if obeys_rule(desirable, undesirable, desirable_weight, undesirable_weight):
        return
    low, high = weight_range(desirable, undesirable, undesirable_weight)
    logger.warning(
        f"desirable_weight {desirable_weight:g} and undesirable_weight {undesirable_weight:g} leave the paper's rule "
        f"for {desirable} desirable and {undesirable} undesirable rows: desirable_weight from {low:.2f} to {high:.2f} "
        f"fits, or undesirable_weight from {desirable_weight / high * undesirable_weight:.2f} to "
        f'{desirable_weight / low * undesirable_weight:.2f}; desirable_weight="auto" chooses.'
    )


def _warn_one_class(desirable: int, undesirable: int, batch_size: int) -> None:
    share = one_class_share(desirable, undesirable, batch_size)
    if share <= ONE_CLASS_LIMIT:
        return
    enough = batch_size_for(desirable, undesirable)
    if enough is None:
        remedy = "the data holds one class only"
    else:
        remedy = f"per_device_train_batch_size={enough} or more brings it below {ONE_CLASS_LIMIT:.0%}"
        if batch_size * min(desirable, undesirable) >= desirable + undesirable:
            remedy += ', and train_sampling_strategy="stratified" avoids it'
    logger.warning(f"{share:.0%} of the micro-batches of {batch_size} rows will hold one class: {remedy}.")
