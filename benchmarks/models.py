"""Random Llama-shaped models with SmolLM2's tokenizer, where only sizes matter."""

from pathlib import Path
from typing import Any

import torch
from rows import DEMO_MODEL
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MEDIUM = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def random_model(folder: Path, *, vocabulary: int = 49152, **sizes: Any) -> str:
    """Weights, config and tokenizer in a folder; its path."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=1 << 17, **SMALL | sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder)
    return str(folder)
