"""Ranks that are killed and go on, under every engine. Started by `test_distributed_resume.py`."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import peft
import ranks
import torch
from rank_cases import LORA
from tiny import tiny_llama
from tiny_trainer import rows, trainer

from fastkto import engines

SETTINGS = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "linear",
    "disable_dropout": False,
}
IN_A_STEP, IN_A_CHECKPOINT = ("compute_loss", 5), ("_save_rng_state", 4)
VARIANTS = {"full": IN_A_STEP, "an adapter": IN_A_CHECKPOINT, "no second model": IN_A_CHECKPOINT}
"""Each with the method and the step in which rank 1 is killed."""


def build(folder, variant):
    """A run of 8 steps in 2 epochs with dropout, and a checkpoint at every other step."""
    return trainer(
        folder,
        model=tiny_llama(attention_dropout=0.2),
        peft_config=peft.LoraConfig(**LORA, lora_dropout=0.1) if variant == "an adapter" else None,
        train_dataset=rows(32),
        precompute_ref_log_probs=variant == "no second model",
        use_cpu=ranks.SETTINGS.get("use_cpu", True),
        **SETTINGS,
    )


def kill_rank_1(t, name, at):
    stock = getattr(t, name)

    def dies(*args, **kwargs):
        if t.args.process_index == 1 and t.state.global_step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(*args, **kwargs)

    setattr(t, name, dies)


def digest(model):
    """Of the weights that train, wherever their parts are."""
    found = hashlib.blake2b()
    for parameter in model.parameters():
        if parameter.requires_grad:
            with engines.whole(parameter):
                found.update(ranks.whole(parameter.detach()).numpy().tobytes())
    return found.hexdigest()


def main(engine, folder, action, *variants):
    """`action`: "run" to the end, "resume", or "die"."""
    ranks.on_cpu(engine)
    for variant in variants:
        t = build(Path(folder) / variant, variant)
        if action == "die":
            kill_rank_1(t, *VARIANTS[variant])
        t.train(resume_from_checkpoint=action == "resume")
        curve = [{k: v for k, v in line.items() if "time" not in k} for line in t.state.log_history if "loss" in line]
        result = {"curve": curve, "weights": digest(t.model)}
        (Path(folder) / f"{variant}-{t.args.process_index}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
