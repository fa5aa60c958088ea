"""Whole steps of the trainer: which rows they average over, in which order rows come, and every way to run them."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from datasets import Dataset
from tiny import tiny_llama, tiny_tokenizer
from tolerance import assert_close, assert_within
from training import STILL, Gradients, by_hand, noisy, rows, rows_seen, steps, trainer
from transformers.utils import logging

from fastkto import KTOTrainer
from fastkto.errors import InputError

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
GENTLE = {**STILL, "beta": 0.5}


@pytest.fixture
def warnings(caplog):
    """What the package logs, the lines of transformers' loggers included."""
    logging.enable_propagation()
    with caplog.at_level("WARNING"):
        yield caplog
    logging.disable_propagation()


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


def test_random_order_changes_every_epoch_and_is_reproducible(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 3}
    seen = rows_seen(trainer(tmp_path, **settings))
    epochs = [[row for batch in seen[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert rows_seen(trainer(tmp_path, **settings)) == seen
    assert rows_seen(trainer(tmp_path, data_seed=9, **settings)) != seen


def test_sequential_stratified_and_by_length(tmp_path):
    data = rows(16, desirable=lambda i: i < 8)
    settings = {"max_steps": -1, "num_train_epochs": 2, "train_dataset": data}
    assert rows_seen(trainer(tmp_path, train_sampling_strategy="sequential", **settings)) == 2 * [
        list(range(i, i + 4)) for i in range(0, 16, 4)
    ]
    for batch in rows_seen(trainer(tmp_path, train_sampling_strategy="stratified", **settings)):
        assert sum(row < 8 for row in batch) == 2
    t = trainer(tmp_path, train_sampling_strategy="group_by_length", **settings)
    lengths = [len(x["prompt_ids"]) + len(x["completion_ids"]) for x in t.train_dataset]
    first = rows_seen(t)[0]
    assert max(lengths) in [lengths[row] for row in first], "the longest rows come first: memory fails at once"


@pytest.mark.parametrize(("workers", "shards"), [(0, 1), (2, 2), (2, 1)])
def test_streaming(workers, shards, tmp_path):
    stream = rows(24).to_iterable_dataset(num_shards=shards)
    t = trainer(tmp_path, train_dataset=stream, max_steps=5, dataloader_num_workers=workers)
    seen = rows_seen(t)
    assert len(seen) == 5
    assert all(len(set(batch)) == 4 for batch in seen)
    assert t.accelerator.dispatch_batches is False
    if workers == 0:
        assert seen[0] == [0, 1, 2, 3]


def test_streaming_needs_max_steps_and_no_cache(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, train_dataset=rows().to_iterable_dataset(), max_steps=-1)
    with pytest.raises(InputError, match="^precompute_ref_log_probs: got True, expected False with streaming"):
        trainer(tmp_path, train_dataset=rows().to_iterable_dataset(), precompute_ref_log_probs=True)
    with pytest.raises(InputError, match="^desirable_weight: got .auto., expected a number with streaming"):
        trainer(tmp_path, train_dataset=rows().to_iterable_dataset(), desirable_weight="auto")


def test_worker_processes_change_nothing(tmp_path):
    runs = []
    for workers in (0, 2):
        t = trainer(tmp_path, dataloader_num_workers=workers, max_steps=4, precompute_ref_log_probs=True)
        t.train()
        runs.append([line["loss"] for line in steps(t)])
    assert runs[0] == runs[1]


# Ways to run the same step


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
            from fastkto.padding import PaddingCollator

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


# What happens at 2 a.m.


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


@pytest.mark.parametrize(
    ("desirable", "auto", "warned"),
    [(6, 1.0, False), (3, 3.0, True), (9, 0.5, True)],
)
def test_auto_weight_solves_the_rule_and_a_weight_outside_it_warns(desirable, auto, warned, tmp_path, warnings):
    data = rows(12, desirable=lambda i: i < desirable)
    t = trainer(tmp_path, train_dataset=data, desirable_weight="auto")
    assert_within(t.settings.desirable_weight, auto, relative=1e-9)
    ratio = t.settings.desirable_weight * desirable / (12 - desirable)
    assert 1 <= ratio <= 1.5
    assert f'desirable_weight="auto" is {auto:g} for {desirable} desirable' in warnings.text
    warnings.clear()
    trainer(tmp_path, train_dataset=data)
    assert ("leave the paper's rule" in warnings.text) == warned
    if warned:
        low = (12 - desirable) / desirable
        assert f"desirable_weight from {low:.2f} to {1.5 * low:.2f} fits" in warnings.text


def test_auto_with_one_class_is_an_error(tmp_path):
    with pytest.raises(InputError, match="^label: got '12 desirable and 0 undesirable rows'"):
        trainer(tmp_path, train_dataset=rows(desirable=lambda i: True), desirable_weight="auto")


def test_micro_batches_of_one_class_are_announced(tmp_path, warnings):
    data = rows(12, desirable=lambda i: i < 3)
    trainer(tmp_path, train_dataset=data)
    assert "25% of the micro-batches of 4 rows will hold one class" in warnings.text
    assert 'train_sampling_strategy="stratified" avoids it' in warnings.text
    enough = int(re.search(r"per_device_train_batch_size=(\d+)", warnings.text)[1])
    warnings.clear()
    trainer(tmp_path, train_dataset=data, train_sampling_strategy="stratified")
    trainer(tmp_path, train_dataset=data, per_device_train_batch_size=enough)
    assert "one class" not in warnings.text
    trainer(tmp_path, train_dataset=data, per_device_train_batch_size=enough - 1)
    assert "one class" in warnings.text


def test_class_weights_reach_the_fused_head(tmp_path):
    """Bug of a peer: class weights dropped on the fused path."""
    losses = []
    for weight in (1.0, 3.0):
        t = trainer(tmp_path, desirable_weight=weight, undesirable_weight=0.5, max_steps=1)
        t.train()
        losses.append(steps(t)[0]["loss"])
    assert losses[0] != losses[1]


def test_string_labels_are_read_as_what_they_say(tmp_path):
    """Bug of a peer: string labels read as all true."""
    data = Dataset.from_list([{**row, "label": str(row["label"])} for row in rows().to_list()])
    t = trainer(tmp_path, train_dataset=data)
    assert list(t.train_dataset["label"]) == list(rows()["label"])


def test_import_needs_only_torch_and_the_standard_library():
    code = (
        "import sys; import torch; before = {m.partition('.')[0] for m in sys.modules}; import fastkto;"
        "fastkto.kto_loss, fastkto.token_logprobs, fastkto.fused_linear_kto;"
        "new = {m.partition('.')[0] for m in sys.modules} - before - set(sys.stdlib_module_names);"
        "print(sorted(new))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
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
