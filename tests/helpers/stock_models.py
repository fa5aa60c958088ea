"""Random models of transformers' own classes, a family each, for what a head and its options are."""

import torch
import transformers

SMALL = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
WIDE = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
MOE = {**WIDE, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1}
FAMILIES = {
    "Llama": WIDE,
    "Llama tied": {**WIDE, "tie_word_embeddings": True},
    "Phi (head with bias)": WIDE,
    "Gemma2 (softcap)": {**WIDE, "head_dim": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Granite (divisor)": {**WIDE, "logits_scaling": 4.0},
    "Cohere (multiplier)": {**WIDE, "logit_scale": 0.25},
    "GPTNeoX (embed_out)": {**SMALL, "intermediate_size": 64, "max_position_embeddings": 256},
    "GPT2 (tied)": {
        "architecture": "GPT2LMHeadModel",
        "vocab_size": 264,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
    },
    "Qwen3": {**WIDE, "head_dim": 8},
    "Mixtral": {**MOE, "num_local_experts": 4},
    "Qwen3Moe": {**MOE, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8},
}


def family(name, *, seed=0, **changes):
    """A random model of a family, its head large enough that scale, softcap and bias matter."""
    stem = name.split()[0]
    settings = {**FAMILIES[name], **changes}
    architecture = settings.pop("architecture", f"{stem}ForCausalLM")
    config = getattr(transformers, f"{stem}Config")(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)._from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    return model
