"""A checkpoint knows its run: what differs on resume is named, and what would mix two runs is refused."""

import json

import peft
import pytest
import torch
from adapters import LORA, tuned_adapter
from tiny import tiny_llama
from tiny_trainer import noisy, rows, steps, trainer

from fastkto.errors import InputError
from fastkto.training.output.record import FILE

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "train_dataset": rows(20)}
ADAPTER = {"peft_config": peft.LoraConfig(**LORA)}
REFUSED = {
    "learning_rate": ({}, {"learning_rate": 5e-3}),
    "beta": ({}, {"beta": 0.3}),
    "seed": ({}, {"seed": 4}),
    "max_length": ({}, {"max_length": 20}),
    "optim": ({}, {"optim": "sgd"}),
    "lr_scheduler_type": ({}, {"lr_scheduler_type": "cosine"}),
    "desirable_weight": ({}, {"desirable_weight": 1.2}),
    "loss_type": ({}, {"loss_type": "apo_zero_unpaired"}),
    "gradient_accumulation_steps": ({}, {"gradient_accumulation_steps": 2}),
    "data": ({}, {"train_dataset": rows(20, desirable=lambda i: i % 3 == 0)}),
    "base": ({}, {"model": lambda: noisy(tiny_llama())}),
    "reference": ({"ref_model": lambda: noisy(tiny_llama())}, {"ref_model": lambda: noisy(tiny_llama(), seed=9)}),
    "adapter.default.lora_alpha": (ADAPTER, {"peft_config": peft.LoraConfig(**{**LORA, "lora_alpha": 16})}),
}


def run(folder, **changes):
    return trainer(folder, **{**SAVING, **{k: v() if callable(v) else v for k, v in changes.items()}})


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_mix_two_runs_is_refused_by_name(name, tmp_path):
    first, second = REFUSED[name]
    run(tmp_path, **first).train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    other = run(tmp_path, **{**first, **second})
    start = {key: x.clone() for key, x in other.model.state_dict().items()}
    with pytest.raises(
        InputError, match=rf"(?s)^resume_from_checkpoint: got .*the run that wrote it, but .*{name} was "
    ):
        other.train(resume_from_checkpoint=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert all(torch.equal(x, start[key]) for key, x in other.model.state_dict().items())


def test_what_may_change_goes_on_and_is_said(tmp_path, caplog):
    run(tmp_path).train()
    further = run(tmp_path, max_steps=6, save_steps=3, logging_steps=2)
    further.train(resume_from_checkpoint=True)
    assert further.state.global_step == 6
    for words in ("max_steps was 4, is 6", "save_steps was 2, is 3", "logging_steps was 1, is 2"):
        assert words in caplog.text


def test_the_same_run_resumes_without_a_word(tmp_path, caplog):
    run(tmp_path).train()
    run(tmp_path).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert "not everything is as it was" not in caplog.text


def test_a_change_that_is_let_through_holds_from_there_on(tmp_path, caplog):
    run(tmp_path).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    changed = run(tmp_path, learning_rate=5e-3, weight_decay=0.1, resume_changed="ok")
    changed.train(resume_from_checkpoint=checkpoint)
    assert [line["learning_rate"] for line in steps(changed)] == [1e-3, 1e-3, 5e-3, 5e-3]
    assert all(group["weight_decay"] in (0.0, 0.1) for group in changed.optimizer.param_groups)
    assert any(group["weight_decay"] == 0.1 for group in changed.optimizer.param_groups)
    assert "learning_rate was 0.001, is 0.005" in caplog.text
    other = run(tmp_path, optim="sgd", resume_changed="ok")
    other.train(resume_from_checkpoint=checkpoint)
    assert "it starts anew" in caplog.text


def test_a_checkpoint_of_before_is_resumed_and_said(tmp_path, caplog):
    run(tmp_path).train()
    folder = tmp_path / "out" / "checkpoint-2"
    (folder / FILE).unlink()
    run(tmp_path, beta=0.2).train(resume_from_checkpoint=str(folder))
    assert "does not say what it was made with" in caplog.text
    (folder / FILE).write_text("{")
    with pytest.raises(InputError, match="^resume_from_checkpoint: got .*run.json', expected a JSON object, but"):
        run(tmp_path).train(resume_from_checkpoint=str(folder))


def test_the_record_holds_no_secret(tmp_path):
    t = run(tmp_path, hub_token="hf_secret")
    assert "hf_secret" not in json.dumps(t.record.about)


def test_no_secret_of_model_init_kwargs_is_written(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    t = run(tmp_path, model=str(tmp_path / "model"), model_init_kwargs={"token": "hf_secret"})
    t.train()
    t.save_model()
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"hf_secret" not in path.read_bytes() or path.name == "training_args.bin", path


def test_rows_of_weights_in_another_order_are_another_base(tmp_path):
    run(tmp_path, **ADAPTER).train()
    model = tiny_llama()
    weight = model.model.embed_tokens.weight.data
    weight.copy_(weight.flip(0).clone())
    with pytest.raises(InputError, match="base was "):
        run(tmp_path, model=lambda: model, **ADAPTER).train(resume_from_checkpoint=True)


def test_a_cache_of_another_start_is_refused(tmp_path):
    """The adapter of the checkpoint, passed in again, is not the one that the log-probs were cached for."""
    cached = {"precompute_ref_log_probs": True, "learning_rate": 1e-2}
    run(tmp_path, model=tuned_adapter, **cached).train()
    folder = tmp_path / "out" / "checkpoint-2"
    later = peft.PeftModel.from_pretrained(tiny_llama(), folder, is_trainable=True)
    with pytest.raises(InputError, match="reference was "):
        run(tmp_path, model=lambda: later, **cached).train(resume_from_checkpoint=str(folder))
