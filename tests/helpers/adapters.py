"""Adapters on tiny models."""

import peft
import torch
from tiny import tiny_llama

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
ON_LAYERS = {"target_modules": ["q_proj"]}
VIRTUAL = {"num_virtual_tokens": 4}

# kinds of adapters: the name of the config's class, and what it takes beside the defaults
SAMPLE = {
    "LoRA": ("LoraConfig", LORA),
    "DoRA": ("LoraConfig", {**LORA, "use_dora": True}),
    "modules_to_save": ("LoraConfig", {**LORA, "modules_to_save": ["lm_head"]}),
    "all biases": ("LoraConfig", {**LORA, "bias": "all"}),
    "PiSSA": ("LoraConfig", {**LORA, "init_lora_weights": "pissa"}),
    "trained tokens": ("LoraConfig", {**LORA, "trainable_token_indices": [8, 9]}),
    "prompt encoder": ("PromptEncoderConfig", VIRTUAL),
    "VeRA": ("VeraConfig", {}),
    "IA3": ("IA3Config", {}),
}
EVERY = {
    "rsLoRA": ("LoraConfig", {**LORA, "use_rslora": True}),
    "OLoRA": ("LoraConfig", {**LORA, "init_lora_weights": "olora"}),
    "orthogonal": ("LoraConfig", {**LORA, "init_lora_weights": "orthogonal"}),
    "lora_bias": ("LoraConfig", {**LORA, "lora_bias": True}),
    "target_parameters": ("LoraConfig", {"r": 4, "target_parameters": ["mlp.up_proj.weight"]}),
    "layers_to_transform": ("LoraConfig", {**LORA, "layers_to_transform": [1]}),
    "rank_pattern": ("LoraConfig", {**LORA, "rank_pattern": {"q_proj": 2}}),
    "on embeddings": ("LoraConfig", {"r": 4, "target_modules": ["embed_tokens", "lm_head"]}),
    "AdaLoRA": ("AdaLoraConfig", {**ON_LAYERS, "total_step": 100}),
    "BEFT": ("BeftConfig", {}),
    "BOFT": ("BOFTConfig", {}),
    "C3A": ("C3AConfig", {**ON_LAYERS, "block_size": 8}),
    "DeFT": ("DeftConfig", {}),
    "DeLoRA": ("DeloraConfig", {}),
    "FourierFT": ("FourierFTConfig", {**ON_LAYERS, "n_frequency": 16}),
    "FRoD": ("FrodConfig", {}),
    "GLoRA": ("GloraConfig", {}),
    "GraLoRA": ("GraloraConfig", {}),
    "HiRA": ("HiraConfig", {}),
    "HRA": ("HRAConfig", {}),
    "Lily": ("LilyConfig", {}),
    "LN tuning": ("LNTuningConfig", {}),
    "LoHa": ("LoHaConfig", {}),
    "LoKr": ("LoKrConfig", {}),
    "MiSS": ("MissConfig", {"r": 4, **ON_LAYERS}),
    "OFT": ("OFTConfig", {}),
    "OSF": ("OSFConfig", {}),
    "PEANuT": ("PeanutConfig", {}),
    "PSOFT": ("PsoftConfig", ON_LAYERS),
    "PVeRA": ("PveraConfig", {}),
    "RandLoRA": ("RandLoraConfig", {}),
    "RoAd": ("RoadConfig", {**ON_LAYERS, "group_size": 32}),
    "SHiRA": ("ShiraConfig", {"r": 4, **ON_LAYERS}),
    "Supertuning": ("SupertuningConfig", {}),
    "TinyLoRA": ("TinyLoraConfig", {}),
    "trainable tokens": ("TrainableTokensConfig", {"token_indices": [*range(100)]}),
    "UniLoRA": ("UniLoraConfig", {}),
    "VB-LoRA": ("VBLoRAConfig", {**ON_LAYERS, "vector_length": 16, "num_vectors": 8}),
    "WaveFT": ("WaveFTConfig", {**ON_LAYERS, "n_frequency": 16}),
    "prompt tuning": ("PromptTuningConfig", VIRTUAL),
    "prefix tuning": ("PrefixTuningConfig", VIRTUAL),
    "prefix projection": ("PrefixTuningConfig", {**VIRTUAL, "prefix_projection": True, "encoder_hidden_size": 32}),
    "LLaMA adapter": ("AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 1}),
}


def tuned_adapter(**changes):
    """A PeftModel whose adapter does something, as one that comes from an earlier training."""
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**{**LORA, "init_lora_weights": False, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter += 0.1
    return model


def adapter_config(name):
    """The config of one of the kinds above."""
    kind, settings = (SAMPLE | EVERY)[name]
    return getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
