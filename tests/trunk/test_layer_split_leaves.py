"""What the split of the layers leaves behind: no stash, no state, stock models."""

import copy
import weakref

import pytest
import torch
from families import family
from packed_steps import LENGTHS, assert_identical, assert_same_step, checkpointed, packed, step
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from fastkto.batch.layout import Stash
from fastkto.step.micro_step import row_logps
from fastkto.trunk import ModelRun, layer_split
from fastkto.trunk.scorer import install_scorer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_stash_is_gone_before_the_next_layer(checkpointing, monkeypatch):
    stashed = []

    class Watched(Stash):
        def __init__(self, **how):
            class Kept(list):
                def append(self, pair):
                    stashed.extend(weakref.ref(x) for x in pair)
                    super().append(pair)

            super().__init__(**how)
            self.kept = Kept()

    monkeypatch.setattr(layer_split, "Stash", Watched)
    model = family("llama", num_hidden_layers=3).train()
    if checkpointing:
        checkpointed(model)
    alive = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in stashed)))
    step(model, packed())
    assert len(stashed) == 2 * 2 * 3  # `step` scores the KL rows in a forward of its own; the recompute adds none
    assert set(alive) == {0}
    stashed.clear()
    step(model, packed(kl=False), loss_type="apo_zero_unpaired")
    assert not stashed


def state_of(model):
    modules = {name: {k: v for k, v in vars(m).items() if not k.startswith("_")} for name, m in model.named_modules()}
    functions = {name: m.__dict__.get("_gradient_checkpointing_func") for name, m in model.named_modules()}
    return modules, functions, model.config._attn_implementation


@pytest.mark.parametrize("where", ["targets", "tail", "backward"])
def test_a_failure_inside_a_layer_leaves_the_model_as_it_was(where):
    model = checkpointed(family("llama"))
    install_scorer(model)
    before = state_of(model)
    expected = step(model, packed())
    calls = []

    def fail(*_):
        calls.append(1)
        # a forward passes 2 layers in 2 parts each; the fifth call is the recompute
        if len(calls) == {"targets": 3, "tail": 4, "backward": 5}[where]:
            raise KeyboardInterrupt

    hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    other = model.model.layers[0].mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        row_logps(ModelRun(model), packed(), graph=True)[0].sum().backward()
    assert state_of(model) == before
    hook.remove()
    other.remove()
    assert_identical(step(model, packed()), expected)


def test_generate_and_stock_calls_around_packed_steps():
    model, stock = checkpointed(family("llama")), family("llama")
    ids = torch.tensor([[0, 0, 0, 9, 8], [3, 4, 5, 6, 7]])
    asked = {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def check():
        model.eval()
        generated = [m.generate(**asked, max_new_tokens=6, do_sample=False) for m in (model, stock.eval())]
        assert torch.equal(*generated)
        assert torch.equal(model(**asked).logits, stock(**asked).logits)
        model.train()

    check()
    step(model, packed())
    check()

    install_scorer(model)
    total = row_logps(ModelRun(model), packed(), graph=True)[0].sum()
    check()
    total.backward()


class Twice(LlamaDecoderLayer):
    """Two attentions in one layer."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.again = LlamaAttention(config, layer_idx)

    def forward(self, hidden_states, **kwargs):
        hidden = super().forward(hidden_states, **kwargs)
        return hidden + self.again(hidden, **kwargs)[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_layer_with_two_attentions(checkpointing):
    model = family("llama")
    torch.manual_seed(0)
    model.model.layers = torch.nn.ModuleList(Twice(model.config, i) for i in range(2))
    assert_same_step(checkpointed(model) if checkpointing else model.train(), LENGTHS)


def test_a_deep_copy_trains_alike():
    model = checkpointed(family("llama"))
    expected = step(model, packed())
    ours = step(copy.deepcopy(model), packed())
    assert_identical(ours, expected)
