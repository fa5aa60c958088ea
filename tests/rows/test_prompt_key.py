"""The key by which rows of one prompt are known."""

from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fastkto.rows import normalise, tokenize
from fastkto.rows.tokens import prompt_key


def test_prompts_cut_by_different_completions_still_share_a_key():
    vocab = {token: i for i, token in enumerate(["a", "b", "c", "ab", "</s>"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    rows = [{"prompt": "ca", "completion": answer, "label": answer == "b"} for answer in "bc"]
    tokens = tokenize(normalise(Dataset.from_list(rows)), tokenizer, max_length=None)
    assert tokens["prompt_ids"][:] == [[2], [2, 0]]
    assert len({*tokens["prompt_key"]}) == 1


def test_keys_tell_prompts_apart():
    keys = [prompt_key(prompt) for prompt in ([], [0], [0, 0], [1], [256], [1, 2], [2, 1])]
    assert len({*keys}) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert prompt_key([1, 2, 3]) == -5405627362230748553
