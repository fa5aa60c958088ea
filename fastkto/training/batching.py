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
from fastkto.step.lengths import Reach, check_causal, check_positions, why_not_alone
from fastkto.step.probe import NO_WEIGHTS, probe_rows, why_not_packed
from fastkto.trunk import ModelRun
from fastkto.trunk.modules import unwrap_peft

logger = logging.get_logger(__name__)

LOOKED_AT = 512  # rows from which the probe chooses its few


def choose_collator(
    run: ModelRun, rows: Any, args: KTOConfig, *, pad_token_id: int, evals: Any = None
) -> PackingCollator | PaddingCollator:
    """The packing collator where the model proves, on the first rows, to allow it; else the padding one, and why: of
    batches, or where even those let a row depend on others, of rows that run one by one. `evals`: rows that are
    evaluated on, or a dict of such, which may be longer.

    Errors: `InputError` where `packing=True` asks for what the model does not allow, for rows that are too long for it,
    and for a model in which tokens see later ones.
    """
    kl = uses_kl(args.loss_type)
    multiple: Any = args.pad_to_multiple_of
    padding = PaddingCollator(pad_token_id, args.max_length, kl=kl, pad_to_multiple_of=multiple)
    packing = PackingCollator(args.max_length, kl=kl, max_tokens=args.max_tokens_per_forward)
    model = unwrap_peft(run.model)
    candidates = probe_rows(list(itertools.islice(rows, LOOKED_AT)))
    others = [*evals.values()] if isinstance(evals, dict) else [] if evals is None else [evals]
    sized = [(rows, args.per_device_train_batch_size), *((x, args.per_device_eval_batch_size) for x in others)]
    each = [_reach(x, candidates, args, size, kl=kl) for x, size in sized]
    reach = Reach(max(one.row for one in each), max(one.batch for one in each))
    check_positions(model, reach.row, args.max_length)
    given: Any = {"pad_token_id": pad_token_id, "max_length": args.max_length, "kl": kl}
    unpacked = unpadded = None
    with mixed_precision(args, model.device):
        check_causal(run, candidates)
        if args.packing is not False:
            unpacked = why_not_packed(run, candidates, **given)
            whole = PackingCollator(args.max_length, kl=kl)
            unpacked = _of_any_rank(unpacked or why_not_alone(run, candidates, whole, reach, **given))
        if args.packing is False or (unpacked is not None and not args.packing):
            unpadded = _of_any_rank(why_not_alone(run, candidates, padding, reach, **given))
    if args.packing and unpacked is not None:
        fix = f"This model cannot be packed: {unpacked}. Leave packing unset to train otherwise, as correct and slower."
        raise InputError("packing", True, "a model that can be packed", fix)
    if unpadded is not None:
        logger.warning(
            f"This model cannot be padded: {unpadded}. Every row runs by itself, as correct and slower: two forwards "
            "a row, one for the KL rows, in the place of two a batch."
        )
        return PaddingCollator(pad_token_id, args.max_length, kl=kl, one_by_one=True)
    if args.packing is False:
        return padding
    if unpacked is not None:
        logger.warning(f"This model cannot be packed: {unpacked}. It trains on padded batches, as correct and slower.")
        return padding
    if args.torch_compile:
        logger.warning("torch_compile leaves packed batches as they are; packing=False compiles padded ones.")
    if multiple is not None:
        logger.warning("pad_to_multiple_of has no effect: packed batches hold no padding (packing=False pads).")
    return packing


def _reach(rows: Any, looked_at: list[dict[str, Any]], args: KTOConfig, batch_size: int, *, kl: bool) -> Reach:
    """The longest row and the longest batch that there may be; of a stream, from `max_length` or the rows looked at."""
    names = ("prompt_ids", "completion_ids")
    columns = [rows[name] for name in names] if hasattr(rows, "column_names") and hasattr(rows, "__len__") else None
    if columns is None:
        looked_at = rows if isinstance(rows, list) else looked_at
        columns = [[row[name] for row in looked_at] for name in names]
    prompts, completions = ([len(ids) for ids in column] for column in columns)
    longest = max(map(sum, zip(prompts, completions, strict=True)), default=1)
    if kl:  # any prompt may meet any completion
        longest = max(prompts, default=0) + max(completions, default=1)
    if args.max_length is not None:
        longest = args.max_length if not hasattr(rows, "__len__") else min(longest, args.max_length)
    together = longest * batch_size * (2 if kl else 1)
    most = args.max_tokens_per_forward
    return Reach(longest, together if most is None else max(longest, min(together, most)))


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
