"""Settings of the optimizer and its schedule that were changed before a resume: they hold from there on."""

import copy
import inspect
import warnings
from collections.abc import Callable, Set
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

GROUPS = {
    "learning_rate": ("lr", "initial_lr"),
    "weight_decay": ("weight_decay",),
    "adam_beta1": ("betas",),
    "adam_beta2": ("betas",),
    "adam_epsilon": ("eps",),
}
"""Settings that an optimizer holds for each group of its weights, under these names."""
SCHEDULE = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
    *("max_steps", "num_train_epochs", "processes", "data"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
)
"""What the learning rate of a step depends on; the later ones decide how many steps there are."""


def load_but_changed(optimizer: Any, scheduler: Any, load: Callable[[], None], changed: Set[str], steps: int) -> None:
    """Let `load` put the checkpoint's state into both, then what `changed` names as it is now.

    `steps`: those taken before. The rate goes on where the new schedule would be after them. An optimizer of another
    kind starts anew.
    """
    names = {name for setting in changed & GROUPS.keys() for name in GROUPS[setting]}
    groups = [dict(group) for group in optimizer.param_groups]
    schedule = copy.deepcopy(scheduler.state_dict())
    if any(setting.startswith("optim") for setting in changed):
        logger.warning("The optimizer is another one than in the checkpoint: it starts anew.")
        changed = changed | {"learning_rate"}
    else:
        load()
    for group, given in zip(optimizer.param_groups, groups, strict=True):
        group.update({name: given[name] for name in names & given.keys()})
    if changed.isdisjoint(SCHEDULE):
        return
    if "metrics" in inspect.signature(scheduler.step).parameters:  # as that of a plateau has
        logger.warning("The schedule follows the evaluations: it goes on from what it has seen, the rate as it is set.")
        return
    scheduler.load_state_dict(schedule)
    for group, given in zip(optimizer.param_groups, groups, strict=True):
        group.update({name: given[name] for name in GROUPS["learning_rate"] if name in given})
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that no step has been taken yet
        for _ in range(steps):
            scheduler.step()
