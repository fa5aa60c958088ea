"""Packed against padded, for every family: log-probs, loss and every gradient, through the step that trains."""

import pytest
import torch
from families import FAMILIES, family
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packed_steps import LENGTHS, assert_same_step


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_padded(name, checkpointing):
    model = family(name).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_step(model, LENGTHS, router="router_aux_loss_coef" in FAMILIES[name])


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("max_tokens", [1, 40, 60])
def test_split_forwards_share_one_z0(max_tokens, loss_type):
    assert_same_step(family("llama").train(), LENGTHS, max_tokens=max_tokens, loss_type=loss_type)


def test_without_kl_rows_under_checkpointing():
    model = family("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_step(model, LENGTHS, loss_type="apo_zero_unpaired")


def test_truncation():
    assert_same_step(family("qwen3").train(), LENGTHS, max_length=17)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 140)), min_size=2, max_size=5), seed=st.integers(0, 9)
)
def test_any_lengths(lengths, seed):
    assume(sum(p == 0 for p, _ in lengths) < 2)  # rows without a prompt share it
    assert_same_step(family("mistral", seed=seed, num_hidden_layers=1).train(), lengths, seed=seed)


def test_lora():
    peft = pytest.importorskip("peft", reason="the test extra brings peft")
    model = family("llama").train()
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    assert_same_step(peft.get_peft_model(model, config).get_base_model(), LENGTHS)
