"""What happens around the steps: the log file, the watch for collapse, the moving reference."""

import json
import math

import pytest
import torch
from tiny import tiny_llama
from tiny_trainer import noisy, rows, steps, trainer
from tolerance import assert_within
from transformers import TrainerCallback, TrainerControl, TrainerState

from fastkto.errors import InputError
from fastkto.training.callbacks import MetricsFile
from fastkto.training.faults.collapse import CollapseWatch


def lines_on_disk(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


def test_every_log_line_is_on_disk_as_it_is_logged(tmp_path):
    seen = []

    class Reader(TrainerCallback):
        def on_log(self, args, state, control, **_):
            seen.append(len(lines_on_disk(tmp_path)))

    t = trainer(tmp_path, eval_dataset=rows(6), eval_strategy="steps", eval_steps=2, callbacks=[Reader()])
    t.train()
    assert seen == list(range(1, len(t.state.log_history) + 1))
    assert lines_on_disk(tmp_path) == t.state.log_history
    t.evaluate()
    assert lines_on_disk(tmp_path) == t.state.log_history


def test_a_new_run_in_the_same_folder_starts_a_new_file(tmp_path):
    trainer(tmp_path, max_steps=3).train()
    t = trainer(tmp_path, max_steps=1)
    t.evaluate(rows(4))
    assert len(lines_on_disk(tmp_path)) == 5, "an evaluation alone takes nothing away"
    t.train()
    assert lines_on_disk(tmp_path) == t.state.log_history


def test_nan_and_foreign_numbers_are_readable(tmp_path):
    t = trainer(tmp_path, max_steps=1, gradient_checkpointing=False)
    with torch.no_grad():
        t.model.lm_head.weight[9] = float("nan")
    with pytest.raises(InputError, match="^loss: "):
        t.train()
    assert math.isnan(lines_on_disk(tmp_path)[0]["loss"])
    t.log({"loss": 0.25, "mine": torch.tensor(1.5)})
    assert (lines_on_disk(tmp_path)[-1]["loss"], lines_on_disk(tmp_path)[-1]["mine"]) == (0.25, 1.5)


def test_a_checkpoint_comes_with_a_log_line(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "max_steps": 5}
    t = trainer(tmp_path, train_dataset=rows(24), **settings)
    t.train()
    assert [line["step"] for line in steps(t)] == [2, 3, 4, 5]
    by_epoch = trainer(tmp_path, save_strategy="epoch", logging_steps=10, max_steps=-1, num_train_epochs=2)
    by_epoch.train()
    assert [line["step"] for line in steps(by_epoch)] == [3, 6]


def test_only_the_first_process_writes(tmp_path):
    args = trainer(tmp_path).args
    state = TrainerState(is_world_process_zero=False, log_history=[{"loss": 1.0}])
    file = MetricsFile()
    file.on_train_begin(args, state, TrainerControl())
    file.on_log(args, state, TrainerControl())
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


# Collapse


def watched(args, lines):
    watch = CollapseWatch()
    for line in lines:
        watch.on_log(args, TrainerState(), TrainerControl(), logs={"loss": 0.5, **line})
    return watch.warned


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"kl/raw": -6.0}] * 3, {"low"}),
        ([{"kl/raw": -6.0}] * 2, set()),
        ([{"kl/raw": -6.0}, {"kl/raw": -4.0}, {"kl/raw": -6.0}], set()),
        ([{"rewards/chosen": -0.2}] * 3, {"chosen"}),
        ([{"rewards/chosen": -0.05}] * 3, set()),
        ([{"rewards/chosen": -0.2}, {}, {"rewards/chosen": -0.2}], set()),
        ([{"kl/raw": 60.0}, {"kl/raw": 80.0}, {"kl/raw": 120.0}], {"high"}),
        ([{"kl/raw": 90.0}, {"kl/raw": 80.0}, {"kl/raw": 70.0}], set()),
        ([{"kl/raw": 1.0}, {"kl/raw": 2.0}, {"kl/raw": 3.0}], set()),
    ],
)
def test_what_counts_as_collapse(lines, expected, tmp_path, warnings):
    args = trainer(tmp_path, beta=0.1).args
    warnings.clear()
    assert watched(args, lines) == expected
    assert len(warnings.records) == len(expected)
    assert watched(args, [{"eval_loss": 1.0, **line} for line in lines]) == expected


def test_a_run_that_collapses_is_told_so_once_and_a_healthy_one_is_not(tmp_path, warnings):
    """Real runs on the same rows: only the learning rate differs."""
    data = rows(32, desirable=lambda i: i % 4 == 0)
    settings = {"train_dataset": data, "max_steps": 16, "optim": "adamw_torch", "beta": 0.1}
    healthy = trainer(tmp_path, learning_rate=2e-4, **settings)
    healthy.train()
    assert steps(healthy)[-1]["rewards/margins"] > 0
    assert "learning_rate" not in warnings.text
    collapsing = trainer(tmp_path, learning_rate=3e-2, **settings)
    collapsing.train()
    told = [record.getMessage() for record in warnings.records if "Lower learning_rate" in record.getMessage()]
    assert told
    assert len(told) == len({text.split(" (")[0] for text in told}), "each kind once"
    for text in told:
        assert "learning_rate (now 0.03)" in text
        assert "beta (now 0.1)" in text
        assert "desirable_weight (1.0)" in text
        assert "undesirable_weight (1.0)" in text
    last = steps(collapsing)[-1]
    assert last["kl/raw"] < -5 or last["rewards/chosen"] < -0.1 or last["kl/raw"] > 50


def test_lines_of_an_earlier_call_do_not_count(tmp_path):
    args = trainer(tmp_path).args
    watch = CollapseWatch()
    for _ in range(2):
        watch.on_log(args, TrainerState(), TrainerControl(), logs={"loss": 0.5, "kl/raw": -9.0})
    watch.on_train_begin(args, TrainerState(), TrainerControl())
    watch.on_log(args, TrainerState(), TrainerControl(), logs={"loss": 0.5, "kl/raw": -9.0})
    assert not watch.warned


def test_a_run_without_kl_rows_is_watched_too(tmp_path):
    t = trainer(tmp_path, loss_type="apo_zero_unpaired", ref_model=noisy(tiny_llama()))
    t.train()
    assert t.state.global_step == 3


@pytest.mark.parametrize("save", ["no", "best"])
def test_the_figures_of_the_last_steps_are_logged(save, tmp_path):
    more = {"eval_dataset": rows(6), "eval_strategy": "steps", "eval_steps": 5, "metric_for_best_model": "eval_loss"}
    t = trainer(tmp_path, max_steps=3, logging_steps=10, save_strategy=save, **(more if save == "best" else {}))
    t.train()
    assert [line["step"] for line in steps(t)] == [3]
    every = trainer(tmp_path / "every", max_steps=3)
    every.train()
    assert_within(steps(t)[0]["loss"], sum(line["loss"] for line in steps(every)) / 3, relative=1e-5)
