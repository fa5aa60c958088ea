"""Tiny random models of every family that packs, with large weights so that softcaps and windows bite."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_KV = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
WINDOW = 8
EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.5, "experts_implementation": "eager"}  # has float64
FAMILIES = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": COMMON | {"head_dim": 8},
    "mistral": COMMON | {"sliding_window": WINDOW},
    "gemma2": COMMON
    | {"head_dim": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    | {"attn_implementation": "eager"},  # transformers 5.5 chooses sdpa, which leaves the softcap out
    "gemma3_text": COMMON | {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    "phi3": COMMON | {"sliding_window": WINDOW},
    "gpt_neox": NO_KV | {"rotary_pct": 0.5},
    "gpt2": {
        "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "granite": COMMON | {"logits_scaling": 4.0, "attention_multiplier": 0.2},
    "olmo2": COMMON,
    "mixtral": COMMON | EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": COMMON
    | EXPERTS
    | {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
}  # fmt: skip


def family(name: str, *, seed: int = 0, spread: float = 3.0, dtype: torch.dtype = torch.float32, **config):
    """A model of the family, its weights `spread` times the usual ones."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**FAMILIES[name], **config}), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(spread)
    return model
