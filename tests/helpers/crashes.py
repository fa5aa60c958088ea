"""Training runs that end by SIGKILL at a chosen moment, each in a process of its own."""

import functools
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path

import peft
from tiny import tiny_llama
from tiny_trainer import rows, trainer
from transformers import TrainerCallback, TrainerState

from fastkto.errors import InputError
from fastkto.step.logp_cache import LogpCache

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1}
SETTINGS = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "lr_scheduler_type": "linear",
    "disable_dropout": False,
}


def build(folder, *, lora, workers, cached):
    """A run of 8 steps in 2 epochs with dropout, and a checkpoint at every other step."""
    return trainer(
        folder,
        model=tiny_llama(attention_dropout=0.2),
        peft_config=peft.LoraConfig(**LORA) if lora else None,
        train_dataset=rows(20),
        dataloader_num_workers=workers,
        precompute_ref_log_probs=cached,
        **SETTINGS,
    )


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class At(TrainerCallback):
    """Dies at an event of a step (counted from 0, as global_step at that event)."""

    def __init__(self, event, step):
        setattr(self, event, lambda args, state, control, **_: die() if state.global_step == step else None)


def at(event, step):
    return lambda t: t.add_callback(At(event, step))


def before(name, step):
    """Dies where one of the trainer's methods is called in a step."""

    def arm(t):
        stock = getattr(t, name)
        setattr(t, name, lambda *a, **k: die() if t.state.global_step == step else stock(*a, **k))

    return arm


def within(name, step, file):
    """Dies when a method of the trainer has written half of a file of the checkpoint."""

    def arm(t):
        stock = getattr(t, name)

        def write(*args, **kwargs):
            stock(*args, **kwargs)
            if t.state.global_step == step:
                halve(Path(t.args.output_dir) / f"checkpoint-{step}" / file.format(*weights(t)))
                die()

        setattr(t, name, write)

    return arm


def weights(t):
    return ["adapter_model.safetensors" if hasattr(t.model, "peft_config") else "model.safetensors"]


def within_the_state(step):
    def arm(t):
        stock = TrainerState.save_to_json

        def save_to_json(state, path):
            stock(state, path)
            if state.global_step == step:
                halve(Path(path))
                die()

        TrainerState.save_to_json = save_to_json

    return arm


def within_the_rotation(step):
    """Dies when an old checkpoint is half deleted."""

    def arm(t):
        stock = shutil.rmtree

        def rmtree(path, *args, **kwargs):
            if Path(path).name.startswith("checkpoint-") and t.state.global_step == step:
                next(Path(path).glob("*.safetensors")).unlink()
                die()
            return stock(path, *args, **kwargs)

        shutil.rmtree = rmtree

    return arm


def within_the_log(step):
    def arm(t):
        def half_a_line(args, state, control, **_):
            if state.global_step == step:
                halve(Path(args.output_dir) / "metrics.jsonl")
                die()

        callback = TrainerCallback()
        callback.on_log = half_a_line
        t.add_callback(callback)

    return arm


def within_the_cache(write):
    """Dies in the middle of a transaction: armed before the trainer is built, which fills the cache."""

    def arm(_):
        writes = iter(range(1000))
        stock = LogpCache.put

        def put(cache, pairs, logps):
            if next(writes) == write:
                cache._database.execute("BEGIN IMMEDIATE")
                cache._database.execute("INSERT INTO logps VALUES (?, ?, ?, 0)", (cache.model, pairs[0], 1e9))
                die()
            stock(cache, pairs, logps)

        LogpCache.put = put

    return arm


def by_the_clock(seed):
    def arm(_):
        threading.Timer(random.Random(seed).uniform(0.02, 1.2), die).start()

    return arm


MOMENTS = {
    "at the beginning of a step": at("on_step_begin", 3),
    "between the gradients and the optimizer": at("on_pre_optimizer_step", 5),
    "at the end of an epoch": at("on_epoch_end", 5),
    "before there is any checkpoint": at("on_step_begin", 1),
    "as a checkpoint begins": before("save_model", 4),
    "within the weights": within("save_model", 4, "{}"),
    "within the optimizer's state": within("_save_optimizer_and_scheduler", 6, "optimizer.pt"),
    "within the schedule's state": within("_save_optimizer_and_scheduler", 2, "scheduler.pt"),
    "within the random state": within("_save_rng_state", 4, "rng_state.pth"),
    "within the state that makes it whole": within_the_state(6),
    "while an old checkpoint is deleted": within_the_rotation(6),
    "within a line of the log": within_the_log(5),
    "within a write of the cache": within_the_cache(3),
    "by the clock, 1": by_the_clock(1),
    "by the clock, 2": by_the_clock(2),
    "by the clock, 3": by_the_clock(3),
}
MORE = {f"by the clock, {seed}": by_the_clock(seed) for seed in range(4, 11)}
EARLY = ("within a write of the cache",)
AFTER_A_RESUME = {
    "in the first step after it": lambda t: before("compute_loss", 4)(t),
    "in the first checkpoint after it": within("_save_optimizer_and_scheduler", 6, "optimizer.pt"),
}


@functools.cache
def context():
    """A fork server that has the imports already, and has never run autograd."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([path] if path else [])])
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["crashes"])  # found by PYTHONPATH alone
    server.Process(target=int).start()
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
    return server


def in_a_process(*args):
    """The exit code of `run(*args)` in a fresh process."""
    child = context().Process(target=run, args=args)
    child.start()
    child.join(timeout=120)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode


def run(folder, variant, moment=None, again=None):
    """What a process does: train from the newest whole checkpoint, if there is one, and write down how it went."""
    multiprocessing.set_start_method("fork", force=True)  # of data workers: the fork server's own is slow in a child
    folder = Path(folder)
    arm = {None: None, **MOMENTS, **MORE, **AFTER_A_RESUME}[again or moment]
    if arm is not None and moment in EARLY:
        arm(None)
    sys.stdout = io.StringIO()
    t = build(folder, **variant)
    if arm is not None and moment not in EARLY:
        arm(t)
    try:
        t.train(resume_from_checkpoint=(folder / "out").is_dir() and any((folder / "out").glob("checkpoint-*")))
    except InputError as error:
        if "a whole checkpoint-* folder" not in str(error):
            raise
        t.train()
    digest = hashlib.blake2b()
    for parameter in t.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    result = {
        "curve": [untimed(line) for line in t.state.log_history if "loss" in line],
        "file": [untimed(line) for line in lines if "loss" in line],
        "weights": digest.hexdigest(),
        "misses": t.reference.cache.misses if t.reference.cache else 0,
    }
    (folder / "result.json").write_text(json.dumps(result))


def untimed(line):
    return {k: v for k, v in line.items() if "time" not in k and "second" not in k}
