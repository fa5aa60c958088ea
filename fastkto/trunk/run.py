"""A batch -> the model's hidden states at the positions that are scored. One place for packed and padded batches.

Legend: B rows, L padded length, T packed tokens, N scored positions (N' of the KL stream), D hidden.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from fastkto.batch import Layout
from fastkto.config import KTOConfig
from fastkto.trunk.layer_split import packed_forward
from fastkto.trunk.modules import Head, aux_loss_coef, find_head, unwrap_peft

Batch = dict[str, Any]
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


class Scored(NamedTuple):
    """What one forward hands to its scorer, which runs inside of the model's forward."""

    head: Head
    hidden: torch.Tensor
    """(N, D) at the positions that predict a completion token."""
    targets: torch.Tensor
    """(N,)"""
    cu_seqlens: list[int]
    kl_hidden: torch.Tensor | None
    """(N', D), without a graph; None where the batch has no KL stream."""
    kl_targets: torch.Tensor | None
    kl_cu_seqlens: list[int] | None
    aux_loss: torch.Tensor | None
    """A mixture of experts' load-balancing loss over the target tokens, where asked for."""

    @classmethod
    def of(
        cls,
        part: dict[str, Any],
        head: Head,
        hidden: torch.Tensor,
        kl_hidden: torch.Tensor | None,
        aux_loss: torch.Tensor | None,
    ) -> "Scored":
        """The hidden states with the targets and offsets of the same rows, from the batch."""
        kl = part.get("KL_targets"), part.get("KL_cu_seqlens")
        return cls(head, hidden, part["targets"], part["cu_seqlens"], kl_hidden, *kl, aux_loss)


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
    def scorer(hidden_1TD: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Result:
        hidden_TD = hidden_1TD[0]
        kl_hidden = None
        if "KL_logit_index" in sequence:
            kl_hidden = hidden_TD.detach().index_select(0, sequence["KL_logit_index"])
        return score(Scored.of(sequence, head, hidden_TD.index_select(0, sequence["logit_index"]), kl_hidden, aux_loss))

    extra = {"output_router_logits": True} if run.router_logits else {}
    ids = {"input_ids": sequence["input_ids"], "position_ids": sequence["position_ids"]}
    result: Result = run.model(**ids, scorer=scorer, trunk=packed_forward(Layout.of(sequence)), **extra)
    return result


def _run_padded(run: ModelRun, batch: Batch, rows: slice, score: Callable[[Scored], Result]) -> Result:
    """The KL stream first and without a graph, then the targets."""
    kl_hidden = None
    if "KL_input_ids" in batch:
        with torch.no_grad():
            kl_hidden = _run_padded_stream(run, batch, "KL_", rows, lambda hidden, head, aux_loss: hidden)
    part = {
        f"{prefix}{name}": value
        for prefix in ("", "KL_")[: 1 + (kl_hidden is not None)]
        for name, value in _rows_of_stream(batch, prefix, rows).items()
    }

    def scorer(hidden_ND: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Result:
        return score(Scored.of(part, head, hidden_ND, kl_hidden, aux_loss))

    result: Result = _run_padded_stream(run, batch, "", rows, scorer)
    return result


def _run_padded_stream(run: ModelRun, batch: Batch, prefix: str, rows: slice, scorer: Callable[..., Any]) -> Any:
    """The model on some rows of a stream; `scorer` gets the hidden states (N, D) at the positions that predict."""
    input_ids = batch[f"{prefix}input_ids"][rows]
    length = input_ids.shape[1]
    cu_seqlens = batch[f"{prefix}cu_seqlens"]
    index = batch[f"{prefix}logit_index"][cu_seqlens[rows.start] : cu_seqlens[rows.stop]] - rows.start * length

    def at_predicting_positions(hidden_BLD: torch.Tensor, head: Head, aux_loss: torch.Tensor | None) -> Any:
        # prompt-learning adapters put virtual tokens in front
        return scorer(hidden_BLD[:, -length:].flatten(0, 1).index_select(0, index), head, aux_loss)

    extra = {"output_router_logits": True} if run.router_logits and prefix == "" else {}
    mask = batch[f"{prefix}attention_mask"][rows]
    return run.model(input_ids=input_ids, attention_mask=mask, scorer=at_predicting_positions, **extra)


def _rows_of_stream(batch: Batch, prefix: str, rows: slice) -> dict[str, Any]:
    cu_seqlens = batch[f"{prefix}cu_seqlens"]
    first = cu_seqlens[rows.start]
    return {
        "targets": batch[f"{prefix}targets"][first : cu_seqlens[rows.stop]],
        "cu_seqlens": [end - first for end in cu_seqlens[rows.start : rows.stop + 1]],
    }


def _row_parts(run: ModelRun, batch: Batch) -> list[slice]:
    rows = len(batch["input_ids"])
    length = max(batch[name].shape[1] for name in ("input_ids", "KL_input_ids") if name in batch)
    at_once = rows if run.max_tokens is None else max(1, run.max_tokens // max(1, length))
    return [slice(start, min(start + at_once, rows)) for start in range(0, rows, at_once)]
