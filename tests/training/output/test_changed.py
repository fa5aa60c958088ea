"""What was changed before a resume holds from there on: the rates of a run that had the new settings all along."""

import dataclasses
import warnings

import pytest
import torch
from tiny import tiny_llama
from tiny_trainer import config, rows, steps, trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, SequentialLR, StepLR
from transformers import TrainingArguments, get_scheduler

from fastkto import KTOConfig
from fastkto.errors import InputError
from fastkto.training.output.changed import load_but_changed
from fastkto.training.output.record import DECIDES, OF_EVERY_RANK, OF_NO_INTEREST, SECRET, RunRecord, without_secrets

SCHEDULES = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr": 1e-5},
    "warmup_stable_decay": {"num_decay_steps": 3},
}
BY_HAND = {
    "chained": lambda optimizer: CosineAnnealingLR(optimizer, 7),
    "in steps": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "one after the other": lambda optimizer: SequentialLR(
        optimizer, [StepLR(optimizer, 1, 0.5), CosineAnnealingLR(optimizer, 5)], [3]
    ),
}


def made(schedule, lr, total=10):
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": lr / 3}, {"params": weights[1:]}], lr=lr)
    if schedule in BY_HAND:
        return optimizer, BY_HAND[schedule](optimizer)
    given = {"num_warmup_steps": 3, "num_training_steps": total, "scheduler_specific_kwargs": SCHEDULES[schedule]}
    return optimizer, get_scheduler(schedule, optimizer, **given)


def rates(optimizer, scheduler, count):
    found = []
    for _ in range(count):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("after", ["another rate", "another length", "another optimizer"])
@pytest.mark.parametrize("now", [*SCHEDULES, *BY_HAND])
def test_the_rate_goes_on_where_the_new_schedule_would_be(now, after):
    before = made("linear" if now == "cosine" else now, 1e-3)
    rates(*before, 4)
    lr, total = (5e-3 if after == "another rate" else 1e-3), (20 if after == "another length" else 10)
    whole = rates(*made(now, lr, total), 9)
    optimizer, scheduler = made(now, lr, total)

    def load():
        optimizer.load_state_dict(before[0].state_dict())
        scheduler.load_state_dict(before[1].state_dict())

    changed = {
        "another rate": {"learning_rate", "lr_scheduler_type"},
        "another length": {"max_steps", "lr_scheduler_type"},
        "another optimizer": {"optim"},
    }[after]
    with warnings.catch_warnings(action="error"):
        load_but_changed(optimizer, scheduler, load, changed, steps=4)
    assert rates(optimizer, scheduler, 5) == whole[4:]


def test_nothing_of_the_schedule_changed_leaves_what_was_loaded():
    before = made("cosine", 1e-3)
    rates(*before, 4)
    before[0].param_groups[0]["lr"] = 0.125  # by a callback
    optimizer, scheduler = made("cosine", 1e-3)
    load_but_changed(
        optimizer, scheduler, lambda: optimizer.load_state_dict(before[0].state_dict()), {"weight_decay"}, 4
    )
    assert optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 8},
        {"lr_scheduler_type": "cosine", "resume_changed": "ok"},
        {"warmup_steps": 3, "resume_changed": "ok"},
        {"learning_rate": 3e-3, "optim": "sgd", "resume_changed": "ok"},
    ],
    ids=str,
)
def test_a_run_goes_on_with_the_rates_of_its_new_settings(changes, tmp_path):
    settings = {
        "train_dataset": rows(20),
        "max_steps": 5,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    trainer(tmp_path, **settings).train()
    whole = trainer(tmp_path / "whole", **{**settings, **changes})
    whole.train()
    resumed = trainer(tmp_path, **{**settings, **changes})
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert [x["learning_rate"] for x in steps(resumed)][2:] == [x["learning_rate"] for x in steps(whole)][2:]


OTHER = {
    "loss_type": "apo_zero_unpaired",
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "optim": "sgd",
    "optim_args": "momentum=0.5",
    "optim_target_modules": ["mlp"],
    "train_sampling_strategy": "sequential",
    "on_nonfinite": "skip",
    "desirable_weight": 2.0,
    "fp16": None,  # needs a GPU
    "warmup_ratio": None,  # which newer versions of transformers have no more
}
CHANGED = [name for name in DECIDES if OTHER.get(name, 0) is not None]


def other(name, value):
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return 3 if value is None else value * 2 + 1 if isinstance(value, int) else value / 2 + 1e-3


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_that_decides_is_refused_when_changed(name, tmp_path):
    data, model = trainer(tmp_path).train_dataset, tiny_llama()
    args = config(tmp_path)
    changed = config(tmp_path, **{name: other(name, getattr(args, name))})
    RunRecord(args, data, model, None, None).save(tmp_path)
    RunRecord(args, data, model, None, None).load(tmp_path)
    with pytest.raises(InputError, match=f"the run that wrote it, but {name}.* was .*, is "):
        RunRecord(changed, data, model, None, None).load(tmp_path)
    changed.resume_changed = "ok"
    let_pass = RunRecord(changed, data, model, None, None)
    let_pass.load(tmp_path)
    assert let_pass.changed == {name}


def test_every_field_of_ours_is_one_that_decides_or_is_known_not_to():
    """A new field has to be put on one side."""
    leaves_the_loss_alone = {
        *("dataset_num_proc", "pad_to_multiple_of", "packing", "max_tokens_per_forward", "head_backend"),
        *("activation_offloading", "precompute_ref_batch_size", "ref_cache_dir"),
        *("model_init_kwargs", "trust_remote_code"),  # a base that differs is seen by its weights
    }
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = {field.name for field in dataclasses.fields(KTOConfig)} - inherited
    assert ours - {*DECIDES, *OF_NO_INTEREST, *OF_EVERY_RANK} <= leaves_the_loss_alone


def test_a_key_that_names_a_secret_is_not_kept():
    secret = ["token", "hub_token", "HF_TOKEN", "api_key", "apiKey", "password", "client_secret", "access-token"]
    secret += ["Authorization", "bearer", "credentials", "wandb_api_key", "aws_secret_access_key", "passwd", "auth"]
    kept = ["max_tokens_per_forward", "num_tokens", "pad_token_id", "tokenizer", "eos_token", "keys", "monkey"]
    about = {"settings": {"nested": [dict.fromkeys(secret + kept, "hf_x")]}}
    (found,) = without_secrets(about)["settings"]["nested"]
    assert sorted(found) == sorted(kept), SECRET.pattern
