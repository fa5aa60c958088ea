"""The plan is the real step's memory: part by part, on every path, and it grows as the step does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from plans import LENGTHS, LORA, SIZES, WAYS, made, model, plan, plan_way
from tiny import tiny_llama
from tiny_trainer import config, trainer
from tolerance import assert_within
from torch._subclasses.fake_tensor import FakeTensorMode

from fastkto.errors import InputError
from fastkto.tools.footprint import GRADIENTS, HEAD, KEPT, OPTIMIZER, REFERENCE, WEIGHTS, WORK, Footprint
from fastkto.tools.plan import Model, Search, largest, peak_by_part, process_bytes, rows_of, total
from fastkto.trunk.attention import CannotPack


def real_step(tmp_path, *, peft_config=None, **changes):
    """Bytes that the trainer's own step has alive at its peak, beside weights, reference and optimizer."""
    dataset = Dataset.from_list(
        [
            {"prompt_ids": [3 + i] * prompt, "completion_ids": [40 + i] * (completion - 1) + [7], "label": i % 2 == 0}
            for i, (prompt, completion) in enumerate(LENGTHS)
        ]
    )
    t = trainer(tmp_path, model=tiny_llama(**SIZES), train_dataset=dataset, peft_config=peft_config, **changes)
    if t.args.gradient_checkpointing:
        t.model.gradient_checkpointing_enable()
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    (batch,) = t.get_train_dataloader()
    t.training_step(t.model, batch, num_items_in_batch=4)  # what is made once is made
    t.model.zero_grad()
    with Footprint() as footprint:
        t.training_step(t.model, batch, num_items_in_batch=4)
    return sum(footprint.at_peak.values())


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_is_the_memory_of_a_real_step(tmp_path, way, monkeypatch):
    monkeypatch.setattr("fastkto.tools.plan.HOLES_PER_WORK", 0.0)  # which are no tensors
    parts = plan_way(tmp_path, way)
    measured = real_step(tmp_path, **made(way))
    static = parts[WEIGHTS] + parts[REFERENCE] + parts[OPTIMIZER]
    assert_within(total(parts) - static, measured, relative=0.1, name=f"{way}: {parts}")


def test_weights_reference_and_state_are_counted_to_the_byte(tmp_path):
    size = sum(p.numel() * 4 for p in tiny_llama(**SIZES).parameters())
    parts = plan(tmp_path)
    buffers = parts[WEIGHTS] - size  # rotary frequencies
    assert 0 <= buffers < 4096
    assert parts[REFERENCE] == parts[WEIGHTS]
    assert parts[OPTIMIZER] == 2 * size
    assert plan(tmp_path, precompute_ref_log_probs=True)[REFERENCE] == 0
    assert plan(tmp_path, optim="sgd")[OPTIMIZER] == 0


def test_an_adapter_has_the_gradients_and_the_state(tmp_path):
    full, adapter = plan(tmp_path), plan(tmp_path, known=model(LoraConfig(**LORA)))
    assert adapter[REFERENCE] == 0
    assert adapter[OPTIMIZER] < full[OPTIMIZER] / 4
    assert adapter[GRADIENTS] <= adapter[OPTIMIZER] / 2 + 1


def test_a_layer_keeps_its_input_and_the_vocabulary_nothing_beside_weights(tmp_path):
    few, many = (plan(tmp_path, rows_of(2, 512), known=model(layers=layers)) for layers in (4, 9))
    assert many[KEPT] - few[KEPT] == 5 * 1024 * 64 * 4  # checkpointed: hidden states of the targets
    assert many[WORK] == few[WORK]
    small, large = (plan(tmp_path, rows_of(2, 512), known=model(vocab=vocab)) for vocab in (1 << 17, 1 << 18))
    for part in (KEPT, WORK):
        assert_within(large[part], small[part], relative=0.01, name=part)
    # weights, reference, gradient and two moments of the embedding and of the head
    assert large[WEIGHTS] - small[WEIGHTS] == 2 * (1 << 17) * 64 * 4
    assert large[HEAD] <= small[HEAD] + (8 << 20)


def test_8_bit_states_are_bytes_whatever_the_weights_are(tmp_path):
    half = Model(model().config, torch.bfloat16)
    weights = sum(p.numel() for p in tiny_llama(**SIZES).parameters())
    for known in (model(), half):
        assert plan(tmp_path, known=known, optim="adamw_8bit")[OPTIMIZER] == 2 * weights
    assert plan(tmp_path, known=half)[OPTIMIZER] == 2 * 2 * weights


def test_what_a_process_needs_is_told_beside_fake_tensors():
    """A plan may leave some to the garbage collector, and they have no memory to ask for."""
    with FakeTensorMode():
        left = torch.empty(64 << 20)
    assert process_bytes(torch.device("cpu")) > 0
    del left


def test_what_a_process_needs_is_without_its_tensors():
    before = process_bytes(torch.device("cpu"))
    kept = torch.ones(64 << 20)
    assert kept.sum() > 0
    assert abs(process_bytes(torch.device("cpu")) - before) < 32 << 20


def test_a_split_micro_batch_needs_less(tmp_path):
    whole = plan(tmp_path, rows_of(8, 512))
    split = plan(tmp_path, rows_of(8, 512), max_tokens_per_forward=1024)
    assert split[WORK] < whole[WORK] / 2


def test_accumulated_gradients_are_there_in_the_next_forward(tmp_path):
    once, twice = (plan(tmp_path, gradient_accumulation_steps=steps) for steps in (1, 4))
    assert total(twice) > total(once)


def test_an_unknown_optimizer_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"optim: got 'adafactor', expected one of .*adamw_torch_fused"):
        plan(tmp_path, optim="adafactor")


@given(
    room=st.integers(0, 10_000),
    start=st.integers(1, 600),
    unit=st.sampled_from([1, 7, 64]),
    slopes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    fixed=st.integers(0, 500),
)
def test_the_largest_that_fits_is_found(room, start, unit, slopes, fixed):
    asked = []

    def need(value):
        asked.append(value)
        return fixed + max(slopes[0] * value, slopes[1] * (value - 300))

    found = largest(need, room, [start, 2 * start], unit, most=4096)
    good = [
        value for value in range(unit, 4097, unit) if fixed + max(slopes[0] * value, slopes[1] * (value - 300)) <= room
    ]
    if not good:
        assert found is None
    else:
        assert found in good
        assert found >= good[-1] - max(unit, good[-1] // 16)
    assert len(asked) == len(set(asked)) <= 30
    assert all(0 < value <= 4096 for value in asked)


def test_the_longest_rows_and_the_most_of_them_fit_and_a_little_more_does_not(tmp_path):
    search = Search(model(), config(tmp_path))
    memory = total(search.parts(4, 1024))
    length, rows = search.longest(4, 256, memory), search.most_rows(8, 1024, memory)
    assert length is not None
    assert_within(length, 1024, relative=0.07)
    assert total(search.parts(4, length)) <= memory
    assert rows == 4
    assert search.longest(4, 256, 1 << 10) is None
    assert search.most_rows(8, 1024, 1 << 10) is None


def test_a_plan_for_another_device_leaves_nothing_on_this_one(tmp_path):
    helpers = Path(__file__).parents[1] / "helpers"
    command = [sys.executable, helpers / "plan_elsewhere.py", tmp_path]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(helpers)})


def test_a_model_that_cannot_be_packed_is_planned_padded(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise CannotPack("its layers attend elsewhere")

    padded = plan(tmp_path, packing=False)
    monkeypatch.setattr("fastkto.trunk.scorer.packed_forward", refuse)
    assert_within(total(plan(tmp_path)), total(padded), relative=0.05)  # garbage is collected at other moments
    with pytest.raises(InputError, match="packing: got True, .*This model cannot be packed: its layers"):
        plan(tmp_path, packing=True)


def test_buckets_of_several_processes_are_a_second_copy_of_the_gradients(tmp_path):
    alone = plan(tmp_path)
    several = peak_by_part(model(), config(tmp_path), LENGTHS, ddp=True)
    assert total(several) - total(alone) == sum(p.numel() * 4 for p in tiny_llama(**SIZES).parameters())


def test_what_is_moved_off_the_device_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="activation_offloading: got True, expected nothing"):
        plan(tmp_path, activation_offloading=True)
