"""What a run's steps are made of, put together before the first: how the policy is run, its reference, its batches."""

from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from fastkto.config import KTOConfig
from fastkto.engines import prepare_frozen, running, shards
from fastkto.errors import InputError
from fastkto.step.reference import Reference, open_cache
from fastkto.step.reference_model import StartingWeights
from fastkto.training.batching import choose_collator
from fastkto.training.callbacks import MovingReference
from fastkto.trunk import ModelRun
from fastkto.trunk.modules import aux_loss_coef, disable_dropout, unwrap_peft
from fastkto.trunk.scorer import teach_scorer


class Parts(NamedTuple):
    """What `assemble` returns."""

    run: ModelRun
    collator: Any
    reference: Reference
    moving: MovingReference | None
    """The callback that moves the reference, with `sync_ref_model`."""
    aux_loss_coef: float
    """Of a mixture of experts; 0 for other models."""


def assemble(
    policy: Any,
    reference_model: Any | None,
    start: StartingWeights | None,
    rows: Any,
    evals: Any,
    collator: Any | None,
    args: KTOConfig,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Any,
) -> Parts:
    """Teach both models to hand over hidden states, choose packed or padded batches by trying, open the cache.

    `policy`: run here, so `engines.running` is around this. `evals`: rows that are evaluated on, a dict of such, or
    None. `collator`: the user's own, or None to choose one.
    """
    if args.sync_ref_model and shards(accelerator):
        expected = "False with weights that are sharded (FSDP, ZeRO-3)"
        raise InputError("sync_ref_model", True, expected, "Use DDP or ZeRO-2, or leave it out.")
    run = ModelRun.of(policy, args)
    teach_scorer(policy)
    if args.disable_dropout:
        disable_dropout(policy)
    if reference_model is not None:
        with running(reference_model, accelerator):
            teach_scorer(reference_model)
        if args.disable_dropout:
            disable_dropout(reference_model)
    cache = None
    if args.precompute_ref_log_probs:
        precision = f"{accelerator.mixed_precision} {args.head_backend}"
        scored_by = policy if reference_model is None else reference_model
        adapter_off = start is not None and start.adapter_off
        folder = args.ref_cache_dir or args.output_dir or "."
        cache = open_cache(folder, scored_by, tokenizer, precision, adapter_off=adapter_off)
    moving = None
    if reference_model is not None:
        reference_model = prepare_frozen(reference_model, accelerator)
        if args.sync_ref_model:
            moving = MovingReference(unwrap_peft(policy), unwrap_peft(accelerator.unwrap_model(reference_model)))
    if collator is None:
        collator = choose_collator(run, rows, args, pad_token_id=tokenizer.pad_token_id, evals=evals)
    reference = Reference(run, reference_model, cache, accelerator, None if start is None else start.in_place)
    return Parts(run, collator, reference, moving, aux_loss_coef(unwrap_peft(policy), args.router_aux_loss_coef))
