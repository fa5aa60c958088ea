"""Bad days of a run in one process: numbers that are not finite, no memory, no room on the disk."""

import errno
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults.disk import FullDisk
from poison import poison, spoiled
from tiny import tiny_llama
from tiny_trainer import At, noisy, rows, steps, trainer

from fastkto import KTOConfig
from fastkto.errors import InputError
from fastkto.training.faults.checkpoints import why_torn
from fastkto.training.faults.out_of_memory import out_of_memory

SAVING = {"save_strategy": "steps", "save_steps": 100}


def infinite_loss(out):
    return out._replace(loss=out.loss * math.inf)


KINDS = {
    "a log-prob": (spoiled("logps", 2, math.nan), "the policy's log-prob of rows {2}"),
    "a log-prob that leaves the loss finite": (spoiled("logps", 1, math.inf), "the policy's log-prob of rows {1}"),
    "a mismatched pair": (spoiled("kl", 3, -math.inf), "the log-ratio of the mismatched pair of rows {3}"),
    "the loss alone": (infinite_loss, "this process held rows {0}, {1}, {2}, {3}"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_not_finite_stops_the_run_and_names_the_rows(kind, tmp_path, monkeypatch):
    spoil, words = KINDS[kind]
    t = trainer(tmp_path, train_dataset=rows(20), train_sampling_strategy="sequential", max_steps=5, **SAVING)
    monkeypatch.setattr(*(m := poison(t, 2, spoil))[:1], "kto_step", m[1])
    before = {}
    t.add_callback(At(2, lambda: before.update({n: p.detach().clone() for n, p in t.model.named_parameters()})))
    expected = words.format(*range(4, 8)).replace("{", "").replace("}", "")
    with pytest.raises(InputError) as caught:
        t.train()
    assert str(caught.value).startswith("loss: got ")
    assert expected in str(caught.value)
    assert "at step 2" in str(caught.value)
    assert 'on_nonfinite="skip"' in str(caught.value)
    assert t.state.global_step == 2
    assert all(torch.equal(p, before[n]) for n, p in t.model.named_parameters()), "the weights are those before it"
    assert why_torn(tmp_path / "out" / "checkpoint-2") is None
    assert "checkpoint-2 holds the weights from before it" in str(caught.value)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_skipping_leaves_the_step_out_and_counts_it(accumulation, tmp_path, monkeypatch, warnings):
    settings = {"train_dataset": rows(40), "train_sampling_strategy": "sequential", "max_steps": 4}
    settings |= {"gradient_accumulation_steps": accumulation, "on_nonfinite": "skip", "max_grad_norm": 0.0}
    t = trainer(tmp_path, optim="sgd", **settings)
    monkeypatch.setattr(*(m := poison(t, 3, spoiled("logps", 0, math.nan)))[:1], "kto_step", m[1])
    weights = []
    for step in (3, 4):
        t.add_callback(At(step, lambda: weights.append([p.detach().clone() for p in t.model.parameters()])))
    t.train()
    assert t.state.global_step == 4
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True)), "step 3 changed nothing"
    lines = steps(t)
    assert ["skipped_steps" in line for line in lines] == [False, False, True, True]
    assert [line.get("skipped_steps") for line in lines[2:]] == [1.0, 1.0]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(math.isfinite(value) for line in (lines[0], lines[1], lines[3]) for value in line.values())
    assert len([r for r in warnings.records if "the step is skipped" in r.getMessage()]) == 1


def test_a_run_that_only_skips_ends(tmp_path):
    t = trainer(tmp_path, ref_model=noisy(tiny_llama()), max_steps=40, on_nonfinite="skip", train_dataset=rows(12))
    with torch.no_grad():
        t.reference.model.lm_head.weight[9] = math.nan
    with pytest.raises(InputError, match=r"^loss: .*the reference's log-prob of rows .*, 10 consecutive steps"):
        t.train()
    assert t.state.global_step == 10


def test_gradients_that_overflow_count_too(tmp_path):
    t = trainer(tmp_path, max_steps=2)
    t.model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(InputError, match=r"^loss: .*NaN or inf in the gradients \(this process held rows"):
        t.train()


def test_an_unknown_answer_to_nonfinite_numbers_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^on_nonfinite: got 'ignore', expected one of \('stop', 'skip'\)"):
        trainer(tmp_path, on_nonfinite="ignore")


# Memory


def test_out_of_memory_names_the_batch_the_knobs_and_the_plan(tmp_path):
    """A real allocation that fails, in the middle of a step."""
    t = trainer(tmp_path, per_device_train_batch_size=6, gradient_checkpointing=False)
    t.model.model.layers[1].register_forward_pre_hook(lambda *_: torch.empty(2**50) if t.is_in_train else None)
    with pytest.raises(InputError, match=r"^memory: got 'a batch of 6 rows and \d+ tokens, with its KL rows") as caught:
        t.train()
    for words in (
        "can't allocate memory",
        "max_tokens_per_forward",
        "per_device_train_batch_size=3 with gradient_accumulation_steps=2",
        "gradient_checkpointing=True",
        "precompute_ref_log_probs=True",
        "max_length below 1024",
        "To see what fits, run `fastkto plan`",
    ):
        assert words in str(caught.value)


def test_out_of_memory_in_an_evaluation_is_named_too(tmp_path):
    t = trainer(tmp_path, packing=False, max_tokens_per_forward=64)
    t.model.model.layers[1].register_forward_pre_hook(lambda *_: torch.empty(2**50))
    with pytest.raises(InputError, match=r"^memory: got 'a batch of 5 rows .* padded to \d+ per row'") as caught:
        t.evaluate(rows(5))
    assert "lower max_tokens_per_forward (now 64)" in str(caught.value)


def test_what_counts_as_out_of_memory():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("The size of tensor a (3) must match"))


def test_batch_size_finding_keeps_the_allocators_error(tmp_path):
    t = trainer(tmp_path, auto_find_batch_size=True)
    t.model.model.layers[1].register_forward_pre_hook(lambda *_: torch.empty(2**50) if t.is_in_train else None)
    with pytest.raises(InputError, match="^per_device_train_batch_size: got 1"):  # it went down from 4
        t.train()


# The disk


@pytest.mark.parametrize("size", [0, 20_000, 150_000, 1_100])
def test_a_full_disk_leaves_no_half_a_checkpoint(size, tmp_path):
    """Sizes at which the weights, the optimizer and smaller files no longer fit."""
    full = FullDisk(size)
    settings = {"train_dataset": rows(20), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    t = trainer(tmp_path, callbacks=[At(4, full.__enter__)], logging_steps=50, **settings)
    try:
        with pytest.raises(InputError, match="^output_dir: got .*expected a place where") as caught:
            t.train()
    finally:
        full.__exit__()
    said = str(caught.value)
    assert os.strerror(errno.EFBIG) in said or "Only a part of a file could be written" in said
    assert "Free space, or choose another output_dir" in str(caught.value)
    assert [path.name for path in Path(tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_a_failure_that_is_not_the_disks_keeps_its_own_error(tmp_path, monkeypatch):
    t = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    monkeypatch.setattr(t, "_save_rng_state", lambda folder: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        t.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


# What is refused, and when


def test_4_bits_on_a_cpu_are_refused_by_the_trainer_too(tmp_path):
    config = SimpleNamespace(load_in_4bit=True)
    with pytest.raises(InputError, match="^quantization_config: got 'load_in_4bit', expected not 4 bits on a CPU"):
        trainer(tmp_path, model="a/model", quantization_config=config)
    quantised = tiny_llama()
    quantised.is_loaded_in_4bit = True
    with pytest.raises(InputError, match="^model: got 'load_in_4bit', expected not 4 bits on a CPU"):
        trainer(tmp_path, model=quantised)


def test_several_gpus_in_one_process_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(KTOConfig, "n_gpu", 2)
    with pytest.raises(InputError, match="^GPUs visible to one process: got 2"):
        trainer(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_refusal_after_the_folder_was_made_takes_it_away(tmp_path):
    model = tiny_llama()
    model.config.logit_scale = 2.0  # a scale that this model does not apply
    with pytest.raises(InputError, match="^model: got"):
        trainer(tmp_path, model=model)
    assert not (tmp_path / "out").exists()


def test_an_error_in_the_users_input_is_no_reason_to_train_padded(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("row 3", "x", "y", "Mend it.")

    monkeypatch.setattr("fastkto.step.probe.row_logps", refuse)
    with pytest.raises(InputError, match="^row 3"):
        trainer(tmp_path)


def test_padding_that_has_no_effect_says_so(tmp_path, warnings):
    text = "pad_to_multiple_of has no effect"
    trainer(tmp_path, pad_to_multiple_of=8, packing=False)
    assert text not in warnings.text
    trainer(tmp_path, pad_to_multiple_of=8)
    assert text in warnings.text
