"""A batch -> the model's hidden states at the positions that are scored. One place for packed and padded batches."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from fastkto.config import KTOConfig
from fastkto.trunk.modules import aux_loss_coef, find_head, unwrap_peft
from fastkto.trunk.scorer import Batch, PackedScorer, PaddedScorer, Scored, Scorer, padded_length

Result = TypeVar("Result")


class ModelRun(NamedTuple):
    """How one model is run on a batch."""

    model: Any
    backend: str = "auto"
    max_tokens: int | None = None
    """Tokens of one forward of a padded batch, padding included (a packed one is split when it is built)."""
    plain_head: bool = True
    """Whether the head is its weight and bias and nothing else."""
    router_logits: bool = False

    @classmethod
    def of(cls, model: Any, args: KTOConfig) -> "ModelRun":
        """How a policy is run in a training with these arguments."""
        base = unwrap_peft(model)
        return cls(
            model,
            backend=args.head_backend,
            max_tokens=args.max_tokens_per_forward,
            plain_head=find_head(base).plain,
            router_logits=aux_loss_coef(base, args.router_aux_loss_coef) > 0,
        )


def num_forwards(run: ModelRun, batch: Batch) -> int:
    """How many forwards of the model a batch takes, per stream."""
    return len(batch["sequences"]) if "sequences" in batch else len(_row_parts(run, batch))


def run_batch(run: ModelRun, batch: Batch, score: Callable[[Scored], Result]) -> list[Result]:
    """`score` of every forward of a batch, rows in order."""
    if "sequences" in batch:
        return [_run_packed(run, sequence, score) for sequence in batch["sequences"]]
    return [_run_padded(run, batch, part, score) for part in _row_parts(run, batch)]


def run_extra_forwards(run: ModelRun, batch: Batch, forwards: int, score: Callable[[Scored], Result]) -> list[Result]:
    """`score` of the forwards up to `forwards` beyond this batch's own: its smallest part, again and again.

    Every forward of a sharded model gathers weights from all ranks: one that stops early leaves the others hanging.
    """
    extra = range(forwards - num_forwards(run, batch))
    if "sequences" in batch:
        least = min(batch["sequences"], key=lambda sequence: sequence["input_ids"].shape[1])
        return [_run_packed(run, least, score) for _ in extra]
    fewest = min(_row_parts(run, batch), key=lambda part: part.stop - part.start)
    return [_run_padded(run, batch, fewest, score) for _ in extra]


def _run_packed(run: ModelRun, sequence: Batch, score: Callable[[Scored], Result]) -> Result:
    ids = {"input_ids": sequence["input_ids"], "position_ids": sequence["position_ids"]}
    return _call(run, PackedScorer(sequence, score), ids, router_logits=run.router_logits)


def _run_padded(run: ModelRun, batch: Batch, rows: slice, score: Callable[[Scored], Result]) -> Result:
    """The KL stream first and without a graph, then the targets."""
    kl = None
    if "KL_input_ids" in batch:
        scorer = PaddedScorer(batch, rows, lambda scored: scored.hidden, prefix="KL_")
        with torch.no_grad():
            kl_hidden = _call(run, scorer, _padded_inputs(batch, rows, "KL_"), router_logits=False)
        kl = kl_hidden, scorer.targets, scorer.cu_seqlens
    inputs = _padded_inputs(batch, rows, "")
    return _call(run, PaddedScorer(batch, rows, score, kl=kl), inputs, router_logits=run.router_logits)


def _padded_inputs(batch: Batch, rows: slice, prefix: str) -> Batch:
    length = padded_length(batch, rows, prefix)
    return {name: batch[f"{prefix}{name}"][rows, :length] for name in ("input_ids", "attention_mask")}


def _call(run: ModelRun, scorer: Scorer, inputs: Batch, *, router_logits: bool) -> Any:
    extra = {"output_router_logits": True} if router_logits else {}
    return run.model(**inputs, scorer=scorer, **extra)


def _row_parts(run: ModelRun, batch: Batch) -> list[slice]:
    rows = len(batch["input_ids"])
    if "row_lengths" in batch:
        return [slice(row, row + 1) for row in range(rows)]
    length = max(batch[name].shape[1] for name in ("input_ids", "KL_input_ids") if name in batch)
    at_once = rows if run.max_tokens is None else max(1, run.max_tokens // max(1, length))
    return [slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once)]
