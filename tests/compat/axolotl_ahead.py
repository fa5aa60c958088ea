"""A plugin of Axolotl's own kind: the policy starts from weights beside `base_model`, some steps ahead of it."""

from pathlib import Path

from axolotl.integrations.base import BasePlugin
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model


class Ahead(BasePlugin):
    """Loads `policy` after the host has made its reference of `base_model`, or `adapter` into a new adapter."""

    def post_trainer_create(self, cfg, trainer):
        beside = Path(cfg.base_model).parent
        if isinstance(trainer.model, PeftModel):
            set_peft_model_state_dict(trainer.model, load_peft_weights(str(beside / "adapter"), device="cpu"))
        else:
            load_model(trainer.model, beside / "policy" / "model.safetensors")
