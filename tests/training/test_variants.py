"""The same run another way: checkpointing, accumulation, precision, a second call."""

import peft
import pytest
import torch
from adapters import LORA
from datasets import Dataset
from tiny import tiny_llama
from tiny_trainer import GENTLE, Gradients, noisy, rows, steps, trainer
from tolerance import assert_within

VARIANTS = {
    "no checkpointing": {"gradient_checkpointing": False},
    "activations in CPU memory": {"activation_offloading": True},
    "padding to a multiple": {"pad_to_multiple_of": 8, "packing": False},
    "padded": {"packing": False},
    "unused columns kept": {"remove_unused_columns": False},
    "collator passed in": {"data_collator": True},
    "optimizer passed in": {"optimizers": True},
    "extra columns": {"extra": True},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_same_run_another_way(kind, name, tmp_path):
    runs = []
    for changes in ({}, dict(VARIANTS[name])):
        model = tiny_llama() if kind == "full" else peft.get_peft_model(tiny_llama(), peft.LoraConfig(**LORA))
        if changes.pop("extra", False):
            data = rows().to_list()
            changes["train_dataset"] = Dataset.from_list([{**row, "source": "web", "score": 3} for row in data])
        if changes.pop("data_collator", False):
            from fastkto.batch import PaddingCollator

            changes["data_collator"] = PaddingCollator(0, 1024)
        if changes.pop("optimizers", False):
            parameters = [p for p in model.parameters() if p.requires_grad]
            changes["optimizers"] = (torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0), None)
        t = trainer(tmp_path, model=model, ref_model=noisy(tiny_llama()), **changes)
        t.train()
        runs.append(steps(t))
    for ours, theirs in zip(*runs, strict=True):
        assert_within(ours["loss"], theirs["loss"], relative=1e-5, name="loss")
        assert_within(ours["grad_norm"], theirs["grad_norm"], relative=1e-3, name="grad_norm")
        assert_within(ours["kl/raw"], theirs["kl/raw"], absolute=1e-4, name="kl/raw")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_bf16_autocast_keeps_every_gradient(kind, tmp_path):
    """Weights cast without a graph (reference, KL rows) must not be the ones that the targets see."""
    runs = []
    for bf16 in (False, True):
        gradients = Gradients()
        model = tiny_llama()
        if kind == "lora":
            model = peft.get_peft_model(model, peft.LoraConfig(**LORA, init_lora_weights=False))
        own = {"model": model, "ref_model": noisy(tiny_llama()), "callbacks": [gradients]}
        t = trainer(tmp_path, bf16=bf16, **own, **{**GENTLE, "max_steps": 1})
        t.train()
        runs.append((steps(t)[0], gradients.steps[0]))
    (exact, oracle), (line, found) = runs
    assert_within(line["loss"], exact["loss"], relative=2e-3)
    assert found.keys() == oracle.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert_within(
            (gradient - oracle[name]).norm().item(), 0.0, absolute=0.1 * oracle[name].norm().item(), name=name
        )


def test_training_in_bf16_weights_and_in_fp16_autocast(tmp_path):
    for settings in ({"model": tiny_llama().bfloat16()}, {"fp16": True}):
        t = trainer(tmp_path, **settings)
        t.train()
        assert_within(steps(t)[0]["loss"], 0.5, absolute=1e-6)
        assert all(0 < line["grad_norm"] < 10 for line in steps(t))


def test_training_again_and_evaluating_in_between(tmp_path):
    t = trainer(tmp_path, eval_dataset=rows(6), logging_steps=2)
    assert t.evaluate()["eval_rewards/margins"] == 0.0
    t.train()  # a third step after the last log line
    tokens = steps(t)[0]["num_tokens"]
    between = t.evaluate()
    assert between["eval_rewards/margins"] != 0.0
    assert t.evaluate()["eval_loss"] == between["eval_loss"]
    t.train()
    assert steps(t)[0]["num_tokens"] == tokens, "tokens of the earlier call are not counted again"


def test_a_second_trainer_on_the_same_model(tmp_path):
    model = tiny_llama()
    trainer(tmp_path, model=model).train()
    second = trainer(tmp_path, model=model)
    second.train()
    assert steps(second)[0]["kl/raw"] == 0.0, "the reference is the model as it was handed over"
    adapted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**LORA))
    trainer(tmp_path, model=adapted).train()
    third = trainer(tmp_path, model=adapted)
    third.train()
    assert steps(third)[0]["kl/raw"] == 0.0
    assert steps(third)[1]["kl/raw"] != 0.0
