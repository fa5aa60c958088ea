"""Whole steps of the trainer: which rows they average over, in which order rows come, and every way to run them."""

import copy
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from adapters import LORA
from datasets import Dataset
from tiny import tiny_llama, tiny_tokenizer
from tiny_trainer import GENTLE, Gradients, by_hand, noisy, rows, steps, trainer
from tolerance import assert_close, assert_within

from fastkto import KTOTrainer
from fastkto.errors import InputError

# Rows of a step


@pytest.mark.parametrize(
    ("count", "accumulation", "batches_of_steps"),
    [
        (18, 2, [[range(4), range(4, 8)], [range(8, 12), range(12, 16)], [range(16, 18)]]),  # five micro-batches
        (10, 3, [[range(4), range(4, 8), range(8, 10)]]),  # a short last micro-batch inside of a step
        (9, 1, [[range(4)], [range(4, 8)], [[8, 0]]]),  # a last row that is alone gets company
    ],
)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_step_is_the_mean_over_its_rows(kind, count, accumulation, batches_of_steps, tmp_path):
    """Bugs of peers: gradient-accumulation scaling; a last row paired with itself; class weights dropped."""
    gradients = Gradients()
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    setup = {"train_dataset": rows(count, desirable=lambda i: i % 3 != 0), "callbacks": [gradients]}
    if kind == "lora":
        model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**LORA, init_lora_weights=False))
        setup |= {"model": model, "ref_model": noisy(tiny_llama())}
    else:
        setup |= {"model": tiny_llama(), "ref_model": noisy(tiny_llama())}
    policy, reference = copy.deepcopy(setup["model"]), copy.deepcopy(setup["ref_model"])
    settings = {**GENTLE, **weights, "gradient_accumulation_steps": accumulation, "max_steps": -1}
    t = trainer(tmp_path, num_train_epochs=1, **setup, **settings)
    t.train()
    assert len(gradients.steps) == len(batches_of_steps)
    wide = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    for line, found, batches in zip(steps(t), gradients.steps, batches_of_steps, strict=True):
        results = []
        for models in (wide, (policy, reference)):
            models[0].zero_grad()
            loss = by_hand(*models, t.train_dataset, [list(b) for b in batches], beta=0.5, weights=(1.5, 0.5))
            loss.backward()
            results.append((loss, {n: p.grad.clone() for n, p in models[0].named_parameters() if p.grad is not None}))
        (exact, oracle), (same_loss, same) = results
        assert_close(torch.tensor(line["loss"], dtype=torch.float32), exact, same_loss, name="loss")
        assert found.keys() == oracle.keys()
        for name, gradient in found.items():
            assert_close(gradient, oracle[name], same[name], name=name)


def test_accumulation_does_not_change_what_a_step_is(tmp_path):
    """apo_zero_unpaired has no z0: one batch of 12 and three of 4 are the same step."""
    results = []
    for batch, accumulation in ((12, 1), (4, 3), (5, 3), (1, 12)):
        gradients = Gradients()
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        own = {"model": tiny_llama(), "ref_model": noisy(tiny_llama()), "callbacks": [gradients]}
        t = trainer(tmp_path, loss_type="apo_zero_unpaired", **own, **{**GENTLE, **settings})
        t.train()
        results.append((steps(t)[0], gradients.steps[0]))
    line, first = results[0]
    assert "kl/raw" not in line
    assert line["kl"] == 0.0
    for other, gradients in results[1:]:
        assert_within(other["loss"], line["loss"], relative=1e-6)
        for name, gradient in gradients.items():
            assert_within((gradient - first[name]).norm().item(), 0.0, absolute=1e-5 * first[name].norm().item())


@pytest.mark.parametrize("kind", ["full", "lora on the head"])
@pytest.mark.parametrize("limit", [1, 30, 45])
def test_forwards_of_few_tokens_share_one_z0(kind, limit, tmp_path):
    results = []
    for max_tokens in (None, limit):
        gradients = Gradients()
        config = peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "lm_head"]}, init_lora_weights=False)
        model = tiny_llama() if kind == "full" else peft.get_peft_model(tiny_llama(), config)
        own = {"model": model, "ref_model": noisy(tiny_llama(), scale=0.05), "callbacks": [gradients], "max_steps": 2}
        t = trainer(tmp_path, max_tokens_per_forward=max_tokens, **{**GENTLE, **own})
        t.train()
        results.append((steps(t), gradients.steps))
    (whole, whole_gradients), (split, split_gradients) = results
    assert any(line["kl"] > 0.1 for line in whole), "z0 would not matter"
    for a, b in zip(split, whole, strict=True):
        for name in ("loss", "grad_norm", "entropy", "logps/chosen", "logits/rejected"):
            assert_within(a[name], b[name], relative=1e-5, absolute=1e-7, name=name)
        for name in ("kl/raw", "kl/stderr", "rewards/chosen", "rewards/margins"):
            assert_within(a[name], b[name], absolute=1e-5, name=name)
        assert a["num_tokens"] == b["num_tokens"]
    for a, b in zip(split_gradients, whole_gradients, strict=True):
        for name, gradient in a.items():
            assert_within((gradient - b[name]).norm().item(), 0.0, absolute=1e-4 * b[name].norm().item(), name=name)


@pytest.mark.parametrize("packing", [None, False])
def test_no_forward_holds_more_tokens_than_allowed(packing, tmp_path):
    """Of neither stream: a mismatched pair may be longer than both of its rows."""
    data = Dataset.from_list(
        [{"prompt": "p" * n, "completion": "c" * (40 - n), "label": n > 9} for n in (2, 30, 9, 25, 4, 33, 12, 20)]
    )
    settings = {"train_dataset": data, "max_tokens_per_forward": 150, "packing": packing, "max_steps": 2}
    t = trainer(tmp_path, ref_model=noisy(tiny_llama()), **settings)
    sizes = []
    for model in (t.model, t.reference.model):
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
    t.train()
    assert sizes
    assert all(rows * length <= 150 for rows, length in sizes if packing is None or rows > 1)
    if packing is False:
        assert max(rows for rows, _ in sizes) > 1, "rows share a forward where they fit"


def test_one_row_a_batch_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match="^per_device_train_batch_size: got 1, .*max_tokens_per_forward"):
        trainer(tmp_path, per_device_train_batch_size=1)
    with pytest.raises(InputError, match="^per_device_eval_batch_size: got 1, .*max_tokens_per_forward"):
        trainer(tmp_path, per_device_eval_batch_size=1, eval_dataset=rows(4))
    trainer(tmp_path, per_device_eval_batch_size=1)


def test_no_kl_term_needs_no_pairs(tmp_path):
    same_prompt = Dataset.from_list([{"prompt": "a", "completion": "b" * i, "label": i > 3} for i in range(1, 8)])
    settings = {"loss_type": "apo_zero_unpaired", "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    t = trainer(tmp_path, train_dataset=same_prompt, eval_dataset=same_prompt, **settings)
    assert t.train().global_step == 3
    assert "eval_kl/raw" not in t.evaluate()


def test_kl_rows_get_no_gradient(tmp_path):
    """Bug of peers: KL rows in the gradient. The step's gradient is that of the target rows at a fixed z0."""
    policy, reference = tiny_llama(), noisy(tiny_llama())
    t = trainer(tmp_path, model=policy, ref_model=reference, **GENTLE)
    batch = t._prepare_inputs(t.data_collator([t.train_dataset[i] for i in range(4)]))
    t.model.train()
    loss, out = t.compute_loss(t.model, batch, return_outputs=True)
    assert not out.z0.requires_grad
    assert not out.kl.requires_grad
    assert not out.rewards.requires_grad
    assert out.z0 > 0.01
    loss.backward()
    assert loss.item() == out.loss.item()


def test_a_batch_of_one_class_is_finite(tmp_path):
    """Bug of a peer: NaN rewards on one-class batches."""
    t = trainer(tmp_path, train_dataset=rows(8, desirable=lambda i: i < 4), train_sampling_strategy="sequential")
    t.train()
    first, second, _ = steps(t)
    assert "rewards/chosen" in first
    assert "rewards/chosen" not in second
    assert "rewards/rejected" in second
    assert not {"rewards/margins"} & (first.keys() | second.keys())
    for line in (first, second):
        assert all(value == value and abs(value) != float("inf") for value in line.values())


# Order of the rows


# Ways to run the same step


# What happens at 2 a.m.


def test_nan_shows_in_the_log(tmp_path):
    t = trainer(tmp_path, max_steps=2, gradient_checkpointing=False)
    with torch.no_grad():
        t.model.lm_head.weight[9] = float("nan")
    with pytest.raises(InputError, match="^loss: "):
        t.train()
    assert [line["loss"] != line["loss"] for line in steps(t)] == [True]


def test_nothing_is_reported_to_services_by_default(tmp_path):
    t = trainer(tmp_path)
    assert t.args.report_to == []


def test_a_stock_call_of_compute_loss(tmp_path):
    t = trainer(tmp_path, ref_model=noisy(tiny_llama()))
    batch = t._prepare_inputs(next(iter(t.get_train_dataloader())))
    alone = t.compute_loss(t.model, batch)
    loss, out = t.compute_loss(t.model, batch, return_outputs=True)
    share = t.compute_loss(t.model, batch, num_items_in_batch=torch.tensor(8))
    assert torch.equal(alone, loss)
    assert out.rewards.shape == out.logps.shape == (4,)
    assert_close(share, loss.double() / 2)


def test_a_failed_step_leaves_a_trainer_that_trains(tmp_path):
    t = trainer(tmp_path)
    step, calls = t.training_step, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    t.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        t.train()
    t.training_step = step
    tokens = steps(t)[0]["num_tokens"]
    t.train()
    assert [line["step"] for line in steps(t)] == [1, 2, 3]
    assert steps(t)[0]["num_tokens"] == tokens


def test_a_smaller_batch_after_running_out_of_memory_has_its_own_pairs(tmp_path):
    settings = {"auto_find_batch_size": True, "max_steps": -1, "num_train_epochs": 1}
    t = trainer(tmp_path, per_device_train_batch_size=8, train_dataset=rows(21), **settings)
    step, sizes = t.training_step, []

    def small_memory(model, inputs, *args, **kwargs):
        if len(inputs["label"]) > 4:
            raise RuntimeError("CUDA out of memory.")
        sizes.append(len(inputs["label"]))
        return step(model, inputs, *args, **kwargs)

    t.training_step = small_memory
    t.train()
    assert max(sizes) <= 4
    assert sum(sizes) == 22, "a last row that is alone in its batch of 4, and was not in one of 8, gets company"


# Weights of the classes


def test_import_needs_only_torch_and_the_standard_library():
    code = (
        "import sys; import torch; before = {m.partition('.')[0] for m in sys.modules}; import fastkto;"
        "fastkto.kto_loss, fastkto.token_logprobs, fastkto.fused_linear_kto;"
        "new = {m.partition('.')[0] for m in sys.modules} - before - set(sys.stdlib_module_names);"
        "print(sorted(new))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    loaded = {name for name in eval(found.stdout) if not name.startswith("_")} - {"fastkto", "fastkto_kernels"}
    assert not loaded & {"transformers", "datasets", "accelerate", "peft", "trl", "tokenizers", "pandas", "matplotlib"}
    assert loaded <= {"numpy", "triton", "sympy", "mpmath", "cython_runtime"}, loaded  # what torch itself brings


def test_tokenizer_is_the_models_own_if_none_is_given(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    args = trainer(tmp_path).args
    t = KTOTrainer(str(tmp_path / "model"), args=args, train_dataset=rows())
    assert t.processing_class.eos_token == "<|end|>"
    assert t.model.dtype == torch.float32
    assert t.train().global_step == 3
