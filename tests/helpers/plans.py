"""Plans of a tiny model's step, by the ways to train it."""

import torch
from peft import LoraConfig
from tiny import tiny_llama
from tiny_trainer import config

from fastkto.tools.plan import Model, peak_by_part

LENGTHS = [(40, 90), (10, 150), (70, 30), (1, 60)]
SIZES = {"hidden": 64, "layers": 3, "vocab": 1024}
LORA = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear"}


def model(peft_config=None, **changes):
    return Model(tiny_llama(**SIZES | changes).config, torch.float32, peft_config)


def plan(tmp_path, lengths=LENGTHS, *, known=None, **changes):
    return peak_by_part(known or model(), config(tmp_path, **changes), lengths)


WAYS = {
    "full": {},
    "cached": {"precompute_ref_log_probs": True},
    "adapter": {"peft_config": LORA},
    "adapter, cached": {"peft_config": LORA, "precompute_ref_log_probs": True},
    "no checkpointing": {"gradient_checkpointing": False},
    "padded": {"packing": False},
    "two forwards": {"max_tokens_per_forward": 400},
    "apo": {"loss_type": "apo_zero_unpaired"},
    "bf16": {"bf16": True},
}


def made(way):
    """The keywords of a way, its adapter's configuration new."""
    changes = dict(WAYS[way])
    if "peft_config" in changes:
        changes["peft_config"] = LoraConfig(**changes["peft_config"])
    return changes


def plan_way(tmp_path, way):
    changes = made(way)
    return plan(tmp_path, known=model(changes.pop("peft_config", None)), **changes)
