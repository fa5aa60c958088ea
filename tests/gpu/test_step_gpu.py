"""Whole training steps on a GPU, and the memory that the plan expects of them."""

import pytest
import torch
from tiny import tiny_llama
from tolerance import assert_within

from fastkto.tools.plan import Model, peak_by_part, total
from fastkto.trunk import varlen

datasets = pytest.importorskip("datasets", reason="the trainer needs datasets, which a bare GPU machine may lack")
from tiny_trainer import trainer  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICE = "cuda"


def model():
    return tiny_llama(hidden=256, layers=4, vocab=32_000)


def losses(tmp_path, **changes):
    t = trainer(tmp_path, model=model(), use_cpu=DEVICE == "cpu", max_steps=4, learning_rate=1e-3, **changes)
    t.train()
    return [line["loss"] for line in t.state.log_history if "loss" in line], t


@pytest.mark.parametrize("bf16", [True, False])
def test_packed_steps_are_padded_steps(tmp_path, bf16, monkeypatch):
    calls = []
    attend = varlen.attend
    monkeypatch.setattr(varlen, "attend", lambda *args: calls.append(1) or attend(*args))
    packed, _ = losses(tmp_path / "packed", packing=True, bf16=bf16)
    assert bool(calls) == (bf16 and DEVICE == "cuda"), "which attention ran"
    padded, _ = losses(tmp_path / "padded", packing=False, bf16=bf16)
    assert len(set(packed)) > 1, "the steps change nothing"
    for ours, theirs in zip(packed, padded, strict=True):
        assert_within(ours, theirs, relative=1e-2 if bf16 else 1e-4, name="loss")


@pytest.mark.parametrize("cached", [True, False])
def test_the_plan_is_what_the_allocator_measures(tmp_path, cached):
    lengths = [(200, 300)] * 4
    rows = [
        {"prompt_ids": [3 + i] * prompt, "completion_ids": [40 + i] * (completion - 1) + [7], "label": i % 2 == 0}
        for i, (prompt, completion) in enumerate(lengths)
    ]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _, t = losses(tmp_path, train_dataset=datasets.Dataset.from_list(rows), bf16=True, precompute_ref_log_probs=cached)
    measured = torch.cuda.max_memory_allocated() - before
    parts = peak_by_part(Model(t.model.config, t.model.dtype), t.args, lengths)
    workspaces = 64 << 20  # cuBLAS's are the allocator's too
    assert_within(total(parts), measured, relative=0.1, absolute=workspaces, name=str(parts))
