"""What a run would ignore or could not use, said before it starts: settings, frozen weights, an optimizer."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging

from fastkto.config import KTOConfig
from fastkto.disk import check_writable
from fastkto.errors import InputError
from fastkto.training.faults.finite import check_optimizer
from fastkto.trunk.modules import is_peft_model

logger = logging.get_logger(__name__)

Ignored = tuple[str, Callable[[Any], bool], str]
"""A field, when it is ignored though it is set, and why."""

IGNORED: tuple[Ignored, ...] = (
    ("precompute_ref_batch_size", lambda args: True, "the reference scores the training batches themselves"),
    ("label_names", lambda args: True, "the rows have their own"),
    ("length_column_name", lambda args: True, "lengths are counted"),
    ("average_tokens_across_devices", lambda args: True, "the loss is the mean over the rows of all devices"),
    ("do_predict", lambda args: True, "call predict"),
    ("do_eval", lambda args: args.eval_strategy == "no", "eval_strategy is no"),
    ("eval_steps", lambda args: args.eval_strategy != "steps", "eval_strategy is not steps"),
    ("ref_cache_dir", lambda args: not args.precompute_ref_log_probs, "precompute_ref_log_probs is not set"),
    ("ref_model_mixup_alpha", lambda args: not args.sync_ref_model, "sync_ref_model is not set"),
    ("ref_model_sync_steps", lambda args: not args.sync_ref_model, "sync_ref_model is not set"),
    ("gradient_checkpointing_kwargs", lambda args: not args.gradient_checkpointing, "gradient_checkpointing is off"),
    ("liger_kernel_config", lambda args: not args.use_liger_kernel, "use_liger_kernel is not set"),
)


OF_AN_ADAPTER = 1e-4
"""A learning rate to start an adapter with."""
GIVEN_BY_THE_TRAINER = ("optimizer", "num_warmup_steps", "num_training_steps")
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")


def check_settings(args: KTOConfig) -> None:
    """Say what is ignored; raise `InputError` for what would be found out once training has begun."""
    schedule: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(args.lr_scheduler_type)]
    own = tuple(name for name in inspect.signature(schedule).parameters if name not in GIVEN_BY_THE_TRAINER)
    for argument, known in (("gradient_checkpointing_kwargs", CHECKPOINTING), ("lr_scheduler_kwargs", own)):
        given: Any = getattr(args, argument) or {}
        if unknown := [name for name in given if name not in known and "kwargs" not in known]:
            raise InputError(argument, unknown[0], f"some of {', '.join(known)}", "Remove it.")
    if args.should_save:
        check_writable("output_dir", args.output_dir or ".")
    check_optimizer(str(getattr(args.optim, "value", args.optim)))
    say_ignored(args, IGNORED)


def say_ignored(settings: Any, table: Iterable[Ignored]) -> None:
    """One line with the settings that differ from their default and change nothing."""
    defaults = {field.name: field.default for field in fields(settings)}
    names = [
        f"{name} ({why})"
        for name, ignored, why in table
        if name in defaults and getattr(settings, name) != defaults[name] and ignored(settings)
    ]
    if names:
        logger.warning("Settings without effect: %s.", "; ".join(names))


def say_rate(model: Any, args: KTOConfig) -> None:
    """One line where an adapter would train at the default rate, which is one for all weights."""
    default = next(field.default for field in fields(args) if field.name == "learning_rate")
    if is_peft_model(model) and args.learning_rate == default:
        logger.warning(
            f"learning_rate is {default:g}, the default for training all weights, at which an adapter learns next to "
            f"nothing. Start with {OF_AN_ADAPTER:g}; docs/choosing.md has a table."
        )


def check_revision(argument: str, name: str, revision: str | None) -> None:
    """Raise `InputError` where a revision of a folder is asked for."""
    if revision not in (None, "main") and Path(name).is_dir():
        fix = "Leave it out, or give the model's id."
        raise InputError(argument, revision, f"none with the folder {name}: only a Hub model has revisions", fix)


def check_trained(model: Any, optimizer: Any) -> None:
    """Raise `InputError` where nothing would move: all weights are frozen, or none is in the optimizer passed in."""
    trained = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    if not trained:
        fix = "Call requires_grad_(True) on some, pass peft_config, or load an adapter with is_trainable=True."
        raise InputError("model", "only frozen weights", "weights to train", fix)
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        return
    held = {id(weight) for group in groups for weight in group["params"]}
    left = [name for key, name in trained.items() if key not in held]
    if len(left) == len(trained):
        fix = "Make it from the model that is trained (with peft_config: wrap the model first), or pass optim instead."
        raise InputError("optimizers", f"an optimizer over {len(held)} other tensors", "one over what is trained", fix)
    if left:
        logger.warning("%d of %d weights that train are not in the optimizer: %s.", len(left), len(trained), left[0])
