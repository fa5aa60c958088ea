"""B9: head and embedding, tied or not, resized or not, adapted in every way that peft knows."""

from itertools import product
from pathlib import Path

import pytest
import torch
from merges import IDS, logits, save_adapter, save_base
from tolerance import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastkto.errors import InputError
from fastkto.tools.merge.merging import merge

WAYS = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "own embedding": {"modules_to_save": ["embed_tokens"]},
    "own head": {"modules_to_save": ["lm_head"]},
    "own both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "tokens": {"trainable_token_indices": [8, 9]},
    "neither": {},
}
LEFT_OUT = ("embedding", "head")
"""What peft saves only one side of where head and embedding are two: the other's new rows are in no file."""
QUICK = {("tied", "both", 264), ("ensured", "both", 264), ("ensured", "own embedding", 272), ("tied", "tokens", 272)}
QUICK |= {("apart", "neither", 272), ("apart", "head", 272), ("tied", "tokens", 264)}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(("tied", "ensured", "apart"), WAYS, (264, 272))
]


@pytest.mark.parametrize(("tie", "way", "rows"), CASES)
def test_b9_head_and_embedding(tie, way, rows):
    save_base(tie_word_embeddings=tie != "apart")
    ensured = {"ensure_weight_tying": True} if tie == "ensured" else {}
    resized = rows if rows != 264 else None
    trained = save_adapter(rows=resized, **{"target_modules": ["q_proj"], **WAYS[way], **ensured})
    if "lm_head" in WAYS[way].get("target_modules", []) and trained.get_output_embeddings().out_features != rows:
        pytest.skip("this transformers resizes a tied head's weight and not its size: peft's model does not run")
    ids = torch.cat([IDS, torch.arange(264, rows)[None]], 1)
    wanted = logits(trained, ids)
    if resized and tie == "apart" and way in LEFT_OUT:
        with pytest.raises(InputError, match="vocabulary that was resized"):
            merge(Path("adapter"), Path("merged"))
        assert not Path("merged").exists()
        return
    merge(Path("adapter"), Path("merged"), dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert_close(logits(merged, ids), wanted.double())
    assert merged.config.vocab_size == len(merged.model.embed_tokens.weight) == rows
    one = tie == "ensured" or (tie == "tied" and way in ("tokens", "neither"))
    assert merged.config.tie_word_embeddings == one
    assert len(AutoTokenizer.from_pretrained("merged")) == rows


def test_b9_a_tokenizer_of_more_tokens_than_the_file_has_rows_for_is_refused():
    save_base()
    save_adapter(rows=272)
    save_adapter()
    with pytest.raises(InputError, match="272 tokens.*264.*save_embedding_layers"):
        merge(Path("adapter"), Path("merged"))
    assert not Path("merged").exists()
