"""Where the reference's log-probs come from, that it never moves, and the cache on disk."""

import copy

import peft
import pytest
import torch
from adapters import LORA, tuned_adapter
from tiny import tiny_llama
from tiny_trainer import logp, noisy, rows, steps, trainer
from tolerance import assert_close, assert_within

from fastkto.errors import InputError
from fastkto.step import reference_model


def reference_logps(t, index=(0, 1, 2, 3)):
    """What the trainer's reference says of some training rows, and the batch."""
    batch = t._prepare_inputs(t.data_collator([t.train_dataset[i] for i in index]))
    return t.reference(batch)[0]


def stock_logps(model, t, index=(0, 1, 2, 3)):
    model.eval()
    with torch.no_grad():
        items = [t.train_dataset[i] for i in index]
        return torch.stack([logp(model, x["prompt_ids"], x["completion_ids"]) for x in items])


def moved(t):
    """The trainer after two steps that move its weights far."""
    t.args.learning_rate = 0.05
    t.args.max_steps = 2
    t.train()
    assert t.state.global_step == 2
    return t


def second_model(tmp_path):
    other = noisy(tiny_llama())
    return trainer(tmp_path, ref_model=copy.deepcopy(other)), other


def copy_of_the_model_in_memory(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "disk")
    policy = type(tiny_llama()).from_pretrained(tmp_path / "disk", dtype=torch.float32)
    noisy(policy)  # reloading from disk, as TRL does, would be another model
    return trainer(tmp_path, model=policy), copy.deepcopy(policy)


def new_adapter_off(tmp_path):
    return trainer(tmp_path, peft_config=peft.LoraConfig(**LORA)), tiny_llama()


def copy_of_the_adapter(tmp_path):
    model = tuned_adapter()
    return trainer(tmp_path, model=model), tuned_copy(model)


def copy_of_every_kind_of_adapter_weight(tmp_path):
    model = tuned_adapter(target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"], use_dora=False)
    return trainer(tmp_path, model=model), tuned_copy(model)


def copy_of_trained_tokens(tmp_path):
    model = tuned_adapter(trainable_token_indices=[8, 9, 20])
    return trainer(tmp_path, model=model), tuned_copy(model)


def model_beside_an_adapter(tmp_path):
    other = noisy(tiny_llama())
    return trainer(tmp_path, model=tuned_adapter(), ref_model=copy.deepcopy(other)), other


def adapter_beside_a_model(tmp_path):
    other = tuned_adapter()
    return trainer(tmp_path, ref_model=copy.deepcopy(other)), other


def tuned_copy(model):
    """The same adapter on the same base, built before the trainer adds anything: merged into plain weights."""
    return copy.deepcopy(model).merge_and_unload()


REFERENCES = [
    second_model,
    copy_of_the_model_in_memory,
    new_adapter_off,
    copy_of_the_adapter,
    copy_of_every_kind_of_adapter_weight,
    copy_of_trained_tokens,
    model_beside_an_adapter,
    adapter_beside_a_model,
]


@pytest.mark.parametrize("kind", REFERENCES)
def test_the_reference_is_what_it_should_be_and_stays_it(kind, tmp_path):
    """Bug of a peer: the reference ignored under PEFT."""
    t, expected = kind(tmp_path)
    before = reference_logps(t)
    same = stock_logps(expected, t)
    assert_close(before, stock_logps(expected.double(), t), same, name="log-probs")
    trained = {n: p.detach().clone() for n, p in t.model.named_parameters() if p.requires_grad}
    moved(t)
    after = {n: p for n, p in t.model.named_parameters() if p.requires_grad}
    assert after.keys() == trained.keys()
    assert sum(not torch.equal(after[n], trained[n]) for n in trained) > len(trained) // 2
    assert torch.equal(reference_logps(t), before)
    t.model.train()
    assert reference_logps(t) is not None
    assert t.model.training, "the policy is handed back in the mode it was in"


STARTS = {
    "full": {},
    "full, cached": {"precompute_ref_log_probs": True},
    "new adapter": {"peft_config": peft.LoraConfig(**LORA)},
    "new adapter, cached": {"peft_config": peft.LoraConfig(**LORA), "precompute_ref_log_probs": True},
    "adapter passed in": {"model": tuned_adapter},
    "adapter on the head": {"peft_config": peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "lm_head"]})},
    "forwards of few tokens": {"max_tokens_per_forward": 40},
    "bf16": {"bf16": True},
    "bf16, cached": {"bf16": True, "precompute_ref_log_probs": True},
    "dropout": {"model": lambda: tiny_llama(attention_dropout=0.3)},
}


@pytest.mark.bits
@pytest.mark.parametrize("name", STARTS)
def test_policy_equal_to_the_reference_starts_at_exactly_zero(name, tmp_path):
    # other rows: a pair cached from another batch keeps that batch's rounding
    evals = rows(18).select(range(12, 18))
    settings = {"desirable_weight": 1.5, "undesirable_weight": 0.75, "eval_dataset": evals, **STARTS[name]}
    if callable(settings.get("model")):
        settings["model"] = settings["model"]()
    t = trainer(tmp_path, max_steps=1, **settings)
    before = t.evaluate()
    t.train()
    line = steps(t)[0]
    for key in ("kl", "kl/raw", "kl/stderr", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert line[key] == 0.0, key
        assert before[f"eval_{key}"] == 0.0, f"eval_{key}, before any training"
    batch = [row["label"] for row in t.train_dataset.select(list(t.sampler)[:4])]
    assert_within(line["loss"], sum(0.75 if label else 0.375 for label in batch) / 4, relative=1e-6)


def test_nan_of_the_reference_is_not_hidden(tmp_path):
    broken = noisy(tiny_llama())
    t = trainer(tmp_path, ref_model=broken, max_steps=1)
    with torch.no_grad():
        t.reference.model.lm_head.weight[9] = float("nan")
    with pytest.raises(InputError, match="^loss: got \"NaN or inf in the reference's log-prob of rows"):
        t.train()
    for key in ("loss", "kl", "kl/raw", "rewards/chosen", "rewards/rejected"):
        assert steps(t)[0][key] != steps(t)[0][key], key
    cached = trainer(tmp_path, ref_model=tiny_llama(), max_steps=1, precompute_ref_log_probs=True)
    with torch.no_grad():
        cached.reference.model.lm_head.weight[9] = float("nan")
    with pytest.raises(InputError, match="^reference: got 'a log-prob that is NaN'"):
        cached.evaluate(rows(20).select(range(12, 20)))


@pytest.mark.parametrize("passed_in", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa", "bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
    ],
    ids=repr,
)
def test_the_reference_is_the_model_as_it_was_given(changes, passed_in, tmp_path):
    """Biases train too; PiSSA and OLoRA rewrite the base weights when they start."""
    config = peft.LoraConfig(**{**LORA, **changes})
    base = noisy(tiny_llama(attention_bias=True))
    given = peft.get_peft_model(copy.deepcopy(base), config) if passed_in else copy.deepcopy(base)
    expected = copy.deepcopy(given)
    t = trainer(tmp_path, model=given, peft_config=None if passed_in else config, learning_rate=3e-2)
    if passed_in:
        for name, parameter in expected.named_parameters():
            assert torch.equal(t.model.get_parameter(name), parameter), f"{name} was changed"
    before, same = reference_logps(t), stock_logps(expected, t)
    exact = stock_logps(expected.double(), t)
    if "init_lora_weights" in changes and not passed_in:  # the base and the adapter add up to it but for rounding
        assert_within((before - exact).abs().max().item(), 0.0, absolute=1e-4, name="log-probs")
    else:
        assert_close(before, exact, same, name="log-probs")
    moved(t)
    first = steps(t)[0]
    assert first["kl/raw"] == first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    assert torch.equal(reference_logps(t), before)


def test_a_model_in_its_second_trainer_starts_at_zero(tmp_path):
    """accelerate left autocast out of the second, for the mark of the first."""
    model = tiny_llama()
    trainer(tmp_path / "first", model=model, bf16=True).train()
    again = trainer(tmp_path / "second", model=model, bf16=True, max_steps=1)
    again.train()
    assert steps(again)[0]["kl/raw"] == 0.0


def test_an_interruption_within_the_exchange_leaves_the_policy_as_it_was(tmp_path, monkeypatch):
    t = trainer(tmp_path, model=tuned_adapter())
    moved(t)
    start = next(kept for kept in t.kept if hasattr(kept, "in_place"))
    before = {name: x.detach().clone() for name, x in t.model.named_parameters()}
    calls, stock = [], reference_model.exchanged

    def third_fails(parameter, part):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return stock(parameter, part)

    monkeypatch.setattr(reference_model, "exchanged", third_fails)
    with pytest.raises(KeyboardInterrupt), start.in_place(t.model):
        pass
    assert all(torch.equal(x, before[name]) for name, x in t.model.named_parameters())


def test_a_wrapper_that_renames_layers_hides_no_weight(tmp_path):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    t = trainer(tmp_path, model=tuned_adapter())
    start = next(kept for kept in t.kept if hasattr(kept, "in_place"))
    layers = t.model.get_base_model().model.layers
    layers[0] = checkpoint_wrapper(layers[0])
    moved_weight = next(x for name, x in t.model.named_parameters() if "layers.0" in name and "lora_B" in name)
    before = moved_weight.detach().clone()
    with torch.no_grad():
        moved_weight += 1
    with start.in_place(t.model):
        assert torch.equal(moved_weight, before)
    assert torch.equal(moved_weight, before + 1)


def test_two_active_adapters_stay_active(tmp_path):
    model = tuned_adapter()
    model.add_adapter("second", peft.LoraConfig(**{**LORA, "init_lora_weights": False}))
    model.base_model.set_adapter(["default", "second"])
    expected = copy.deepcopy(model)
    t = trainer(tmp_path, model=model)
    assert_close(reference_logps(t), stock_logps(copy.deepcopy(expected).double(), t), stock_logps(expected, t))
    assert model.base_model.active_adapters == ["default", "second"]
    moved(t)
    assert model.base_model.active_adapters == ["default", "second"]


def test_a_model_under_hooks_of_accelerate_is_not_its_own_reference(tmp_path):
    from accelerate import dispatch_model

    t = trainer(tmp_path, model=dispatch_model(tiny_llama(), {"": "cpu"}, force_hooks=True))
    before = reference_logps(t)
    moved(t)
    assert torch.equal(reference_logps(t), before)


def test_a_reference_that_shares_weights_with_the_policy_is_refused(tmp_path):
    model, other = tiny_llama(), tiny_llama(seed=1)
    other.model.norm = model.model.norm
    with pytest.raises(InputError, match=r"^ref_model: got 'LlamaForCausalLM', expected .* but its model.norm"):
        trainer(tmp_path, model=model, ref_model=other)
    other = tiny_llama(seed=1)
    table = model.model.embed_tokens.weight.data
    other.model.layers[0].input_layernorm.weight.data = table[3]
    with pytest.raises(
        InputError, match="but its model.layers.0.input_layernorm.weight is in the memory of the policy"
    ):
        trainer(tmp_path, model=model, ref_model=other)
    model.requires_grad_(False).lm_head.requires_grad_(True)  # what is frozen may be shared
    trainer(tmp_path, model=model, ref_model=other)
    base = tiny_llama()
    with pytest.raises(InputError, match="^ref_model: got"):
        trainer(tmp_path, model=peft.get_peft_model(base, peft.LoraConfig(**LORA)), ref_model=base)


def test_sync_moves_the_reference_and_only_when_due(tmp_path):
    t = trainer(tmp_path, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.25, max_steps=3)
    start = copy.deepcopy(t.model.state_dict())
    t.train()
    name = "model.layers.0.mlp.up_proj.weight"
    # after step 2 the reference was a quarter of the policy of that time, and nothing moved it after that
    other = trainer(tmp_path, max_steps=2)
    other.train()
    expected = 0.75 * start[name] + 0.25 * other.model.state_dict()[name]
    assert_close(t.reference.model.state_dict()[name], expected.double(), name="reference")


def test_sync_with_an_adapter_or_a_cache_is_refused(tmp_path):
    with pytest.raises(InputError, match="^sync_ref_model: got True"):
        trainer(tmp_path, sync_ref_model=True, peft_config=peft.LoraConfig(**LORA))
    with pytest.raises(InputError, match="^sync_ref_model: got True"):
        trainer(tmp_path, sync_ref_model=True, precompute_ref_log_probs=True)


# The cache
