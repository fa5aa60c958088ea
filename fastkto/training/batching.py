"""How a run forms its batches: in which order, and packed or padded, for this model and this data."""

import itertools
from typing import Any

import torch
from transformers.utils import logging

from fastkto.batch import PackingCollator, PaddingCollator
from fastkto.config import KTOConfig, mixed_precision
from fastkto.errors import InputError
from fastkto.losses.kto import uses_kl
from fastkto.pairs import PairableSampler
from fastkto.step.probe import NO_WEIGHTS, probe_rows, why_not_packed, window_of
from fastkto.trunk import ModelRun
from fastkto.trunk.modules import unwrap_peft

logger = logging.get_logger(__name__)

LOOKED_AT = 512  # rows from which the probe chooses its few


def choose_collator(
    run: ModelRun, rows: Any, args: KTOConfig, *, pad_token_id: int
) -> PackingCollator | PaddingCollator:
    """The packing collator where the model proves, on the first rows, to allow it; else the padding one, and why.

    Errors: `InputError` where `packing=True` asks for what the model does not allow.
    """
    kl = uses_kl(args.loss_type)
    multiple: Any = args.pad_to_multiple_of
    padding = PaddingCollator(pad_token_id, args.max_length, kl=kl, pad_to_multiple_of=multiple)
    if args.packing is False:
        return padding
    model = unwrap_peft(run.model)
    candidates = probe_rows(list(itertools.islice(rows, LOOKED_AT)), window_of(model.config), args.max_length)
    with mixed_precision(args, model.device):
        reason = why_not_packed(run, candidates, pad_token_id=pad_token_id, max_length=args.max_length, kl=kl)
    reason = _of_any_rank(reason)
    if reason is None:
        if args.torch_compile:
            logger.warning("torch_compile leaves packed batches as they are; packing=False compiles padded ones.")
        if multiple is not None:
            logger.warning("pad_to_multiple_of has no effect: packed batches hold no padding (packing=False pads).")
        return PackingCollator(args.max_length, kl=kl, max_tokens=args.max_tokens_per_forward)
    if args.packing:
        fix = f"This model cannot be packed: {reason}. Leave packing unset to train padded, as correct and slower."
        raise InputError("packing", True, "a model that can be packed", fix)
    logger.warning(f"This model cannot be packed: {reason}. It trains on padded batches, as correct and slower.")
    return padding


def _of_any_rank(reason: str | None) -> str | None:
    """Ranks that disagreed would run other numbers of forwards, and hang; one without weights has no say."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return reason
    reasons: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(reasons, reason)
    tried = [each for each in reasons if each != NO_WEIGHTS] or [NO_WEIGHTS]
    return next((each for each in tried if each is not None), None)


def pairable_sampler(rows: Any, batch_size: int, strategy: str, args: KTOConfig) -> PairableSampler:
    """The order of tokenised rows in an epoch of a run with these arguments."""
    lengths = None
    if strategy == "group_by_length":
        columns = zip(rows["prompt_ids"], rows["completion_ids"], strict=True)
        lengths = [len(prompt) + len(completion) for prompt, completion in columns]
    return PairableSampler(
        rows["prompt_key"],
        rows["conversation"],
        rows["label"],
        batch_size,
        strategy=strategy,
        lengths=lengths,
        seed=args.seed if args.data_seed is None else args.data_seed,
        fixed_batches=args.precompute_ref_log_probs,
        world_size=args.world_size,
        kl=uses_kl(args.loss_type),
    )
