"""Adapters in checkpoints: a resumed run is the run that was not stopped, for every kind that peft has."""

import json

import peft
import pytest
import torch
from tiny import tiny_llama
from tiny_trainer import noisy, rows, trainer

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
ON_LAYERS = {"target_modules": ["q_proj"]}
VIRTUAL = {"num_virtual_tokens": 4}

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
    "MiSS": ("MissConfig", LORA),
    "OFT": ("OFTConfig", {}),
    "OSF": ("OSFConfig", {}),
    "PEANuT": ("PeanutConfig", {}),
    "PSOFT": ("PsoftConfig", ON_LAYERS),
    "PVeRA": ("PveraConfig", {}),
    "RandLoRA": ("RandLoraConfig", {}),
    "RoAd": ("RoadConfig", {**ON_LAYERS, "group_size": 32}),
    "SHiRA": ("ShiraConfig", LORA),
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
KINDS = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in EVERY)]


def start(folder, name, **changes):
    kind, settings = (SAMPLE | EVERY)[name]
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    model = noisy(tiny_llama(attention_bias=True))
    prefix = name.startswith("prefix")
    return trainer(
        folder,
        model=model,
        peft_config=config,
        train_dataset=rows(20),
        max_steps=4,
        learning_rate=1e-2,
        gradient_checkpointing=not prefix,
        **changes,
    )


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_adapter_goes_on_bit_for_bit(name, tmp_path):
    whole = start(tmp_path / "whole", name, save_strategy="steps", save_steps=2)
    before = {key: x.clone() for key, x in whole.model.named_parameters() if x.requires_grad}
    whole.train()
    after = dict(whole.model.named_parameters())
    assert any(not torch.equal(x, after[key]) for key, x in before.items()), "nothing trained"
    resumed = start(tmp_path / "resumed", name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-2"))

    def curve(t):
        return [
            {k: v for k, v in line.items() if "time" not in k and "second" not in k}
            for line in t.state.log_history[:-1]
        ]

    assert curve(resumed) == json.loads(json.dumps(curve(whole)))
    for key, x in resumed.model.named_parameters():
        assert torch.equal(x, after[key]), key
