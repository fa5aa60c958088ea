"""Tiny tokenizers, models and layouts, built in memory: the tests need no download."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastkto.batch import Layout, PackingCollator

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]


def tiny_tokenizer(*, chat: bool = True, eos: str | None = None, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every byte a token, so lengths are predictable and nothing is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIALS + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=eos or ("<|end|>" if chat else "</s>"),
        additional_special_tokens=SPECIALS[3:],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(*, seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int = 264, **config) -> LlamaForCausalLM:
    """A random Llama small enough to train in milliseconds."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=7,
            **config,
        )
    )


def layout_of(lengths):
    """The layout of rows of these (prompt, completion) lengths, their KL rows rotated by one."""
    rows = [
        {"prompt_ids": [i] * p, "completion_ids": [9] * c, "label": True, "prompt_key": i}
        for i, (p, c) in enumerate(lengths)
    ]
    return Layout.of(PackingCollator(None)(rows)["sequences"][0])
