"""B9: the comparison is on real text, on a chat, and on the tokens that only the adapter knows; of what was written."""

from pathlib import Path

import pytest
import torch
from merges import logits, save_adapter, save_base
from tiny import tiny_tokenizer
from tolerance import assert_close, assert_within
from transformers import AutoModelForCausalLM

from fastkto.errors import InputError
from fastkto.tools.merge import merging
from fastkto.tools.merge.texts import ANSWER, TEXTS, token_logps, token_rows


def test_b9_texts_a_chat_and_what_no_text_holds():
    tokenizer = tiny_tokenizer()
    *texts, rest = token_rows(tokenizer, [200, 201])
    assert [tokenizer.decode(row) for row in texts[: len(TEXTS)]] == list(TEXTS)
    assert ANSWER in tokenizer.decode(texts[-1])
    assert {200, 201, *tokenizer.get_added_vocab().values()} <= set(rest)
    tokenizer.chat_template = "{{ raise_exception('only a system turn') }}"
    assert len(token_rows(tokenizer, [])) == len(TEXTS) + 1


def test_b9_the_log_probs_are_those_of_the_next_tokens():
    save_base(torch.float32)
    model = AutoModelForCausalLM.from_pretrained("base")
    row = list(range(20, 40))
    wanted = logits(model, torch.tensor([row]))[0].log_softmax(-1)[range(19), row[1:]]
    assert_close(token_logps(model, [row, row]), wanted.double().repeat(2))


def test_b9_the_gap_is_that_of_the_model_read_back():
    save_base()
    trained = save_adapter(r=8, target_modules="all-linear")
    done = merging.merge(Path("adapter"), Path("merged"))
    rows = token_rows(tiny_tokenizer(), [])
    written = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    gap = (token_logps(written, rows) - token_logps(trained, rows)).abs().max().item()
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    effect = (token_logps(base, rows) - token_logps(trained, rows)).abs().max().item()
    assert 0 < gap < 0.1 * effect
    assert_within(done.gap, gap, absolute=5e-6)
    assert_within(done.effect, effect, absolute=5e-6)
    assert done.tokens == sum(len(row) - 1 for row in rows)


def test_b9_what_is_written_wrong_leaves_nothing(monkeypatch):
    save_base()
    save_adapter()
    save = merging.save

    def spoilt(merged, folder, *rest):
        with torch.no_grad():
            merged.lm_head.weight[::2] *= 100
        return save(merged, folder, *rest)

    monkeypatch.setattr(merging, "save", spoilt)
    with pytest.raises(InputError, match="nats per token away.*at most 0.5.*float32"):
        merging.merge(Path("adapter"), Path("deep/merged"))
    assert {path.name for path in Path().iterdir()} == {"base", "adapter"}
