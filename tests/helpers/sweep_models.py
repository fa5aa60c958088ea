"""Every causal-LM family of transformers, tiny: its own config with small sizes."""

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

PARAMETERS = 20_000_000
SIZES = {
    64: "vocab_size vocab_size_per_layer_input",
    512: "max_position_embeddings n_positions n_ctx max_seq_len seq_length",
    32: "hidden_size n_embd d_model embed_dim dim emb_dim word_embed_proj_dim embedding_size attention_hidden_size"
    " lru_width",
    48: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff dff"
    " intermediate_size_mlp",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size",
    16: "q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim index_head_dim",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim state_size"
    " mamba_d_state ssm_state_size sliding_window index_topk dim_head hidden_size_per_layer_input swa_head_dim"
    " rotary_dim",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts"
    " num_local_experts n_routed_experts mamba_n_heads mamba_num_heads num_experts_total",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads"
    " num_experts_per_tok moe_topk linear_num_key_heads linear_num_value_heads index_n_heads num_experts_per_token"
    " prompt_length",
    1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace"
    " mamba_n_groups n_groups bos_token_id",
    0: "pad_token_id num_nextn_predict_layers num_kv_shared_layers",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()} | {"eos_token_id": 2}


ROPE = ("full_attention", "sliding_attention")
LAYERS = ["linear_attention", "full_attention"]
QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 1,
    "hc_lowrank": 8,
    "ple_embed_dim": 16,
    "ngram_vocab_size_base": 64,
    "linear_num_value_heads": 4,
    "output_gate_type": "silu",
}
OWN = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ROPE}},
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"shared_experts_intermediate_size": 24, "per_layer_config": {}, "head_dim": 16},
    "dots3_note_text": {"shared_experts_intermediate_size": 24, "per_layer_config": {}, "head_dim": 16},
    "falcon_h1": {"mamba_d_ssm": 64},
    "git": {"vision_config": SMALL | {"image_size": 32, "patch_size": 16}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": LAYERS, "shared_intermediate_size": 48},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": SMALL | {"image_size": 28, "patch_size": 14, "crop_size": 28},
        "audio_config": SMALL | {"num_blocks": 1, "ext_pw_out_channel": 32, "nemo_conv_channels": 32},
    },
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), QWEN4),
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 8, "num_key_value_heads": 1},
    "xlstm": {"hidden_size": 128, "num_heads": 2, "autocast_kernel_dtype": "float32"},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What a family needs besides, to be small."""


LEFT_OUT = {
    "blt": "four models in one, whose sizes do not follow from one another",
    "gemma4_assistant": "drafts tokens from another model's hidden states",
    "musicgen": "codes of sound in several streams, no text",
    "musicgen_melody": "codes of sound in several streams, no text",
    "reformer": "forms gradients in train mode only, on hashes that it draws anew",
}


def tiny_config(name):
    """The family's own config with every size that it has made small, and one layer of each kind."""
    default = AutoConfig.for_model(name).get_text_config()
    asked = default.to_dict()
    names = {default.attribute_map.get(key, key): key for key in SMALL}
    settings = {key: SMALL[names[key]] for key in names if asked.get(key) is not None}
    if asked.get("num_key_value_heads") == asked.get("num_attention_heads"):
        settings["num_key_value_heads"] = SMALL["num_attention_heads"]
    kinds = asked.get("layer_types")
    if kinds:
        chosen = list(dict.fromkeys(kinds))
        settings["layer_types"] = chosen if len(chosen) > 1 else chosen * 2
        settings[default.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(settings["layer_types"])
    return type(default)(**settings | OWN.get(name, {}))


def tiny_model(name):
    """A random model of the family, counted before it is made."""
    settings = tiny_config(name)
    if type(settings) in MODEL_FOR_CAUSAL_LM_MAPPING:
        build = AutoModelForCausalLM.from_config
    else:  # the class takes a part of the config that the mapping knows
        build = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])._from_config
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(settings).parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f}M parameters are left of its default config")
    torch.manual_seed(0)
    model = build(settings, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2)
    return model
