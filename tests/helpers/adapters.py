"""Adapters on tiny models."""

import peft
import torch
from tiny import tiny_llama

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def tuned_adapter(**changes):
    """A PeftModel whose adapter does something, as one that comes from an earlier training."""
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**{**LORA, "init_lora_weights": False, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter += 0.1
    return model
