"""`ModelArguments` as the configs of peft and bitsandbytes."""

import importlib.util
from typing import TYPE_CHECKING

from fastkto.cli.options.arguments import ModelArguments
from fastkto.errors import InputError, require

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import BitsAndBytesConfig


def peft_config(model: ModelArguments) -> "PeftConfig | None":
    """The LoRA adapter to train, or None."""
    if not model.use_peft:
        return None
    modules = model.lora_target_modules
    return require("peft", "peft").LoraConfig(
        task_type=model.lora_task_type,
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=modules[0] if modules is not None and len(modules) == 1 else modules,
        target_parameters=model.lora_target_parameters,
        modules_to_save=model.lora_modules_to_save,
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
        bias="none",
    )


def quantization_config(model: ModelArguments) -> "BitsAndBytesConfig | None":
    """How the frozen weights are quantised, or None."""
    if not (model.load_in_8bit or model.load_in_4bit):
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        name = "load_in_8bit" if model.load_in_8bit else "load_in_4bit"
        raise InputError(
            name, True, "the package bitsandbytes, which is not installed", "Run: pip install bitsandbytes"
        )
    from transformers import BitsAndBytesConfig

    if model.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=model.dtype,
        bnb_4bit_quant_type=model.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model.use_bnb_nested_quant,
        bnb_4bit_quant_storage=model.bnb_4bit_quant_storage,
    )
