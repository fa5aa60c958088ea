"""Signals: a checkpoint, then the end."""

import os
import signal
import time

import pytest
from tiny_trainer import At, rows, steps, trainer

from fastkto.training.faults import interruption


@pytest.fixture
def as_in_a_terminal():
    """A background process, or one under nohup, is started with these signals ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def curve(t):
    return [{k: v for k, v in line.items() if "time" not in k and "second" not in k} for line in steps(t)]


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize(
    ("told_by", "name", "save"),
    [
        (signal.SIGTERM, "SIGTERM", "no"),
        (signal.SIGTERM, "SIGTERM", "steps"),
        (signal.SIGHUP, "SIGHUP", "no"),
        (signal.SIGINT, "Ctrl-C", "no"),
    ],
)
def test_a_signal_saves_a_checkpoint_and_ends(told_by, name, save, tmp_path, warnings, capfd):
    settings = {"train_dataset": rows(20), "max_steps": 6, "lr_scheduler_type": "linear"}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    told = At(3, lambda: [os.kill(os.getpid(), told_by) for _ in range(2)])
    t = trainer(tmp_path, callbacks=[told], save_strategy=save, **settings)
    before = signal.getsignal(told_by)
    with pytest.raises(KeyboardInterrupt if name == "Ctrl-C" else SystemExit) as left:
        t.train()
    if name != "Ctrl-C":
        assert left.value.code == 128 + told_by
    assert ("Once more stops at once" in capfd.readouterr().err) == (name == "Ctrl-C")
    assert signal.getsignal(told_by) is before
    text = f"{name}: stopped after step 3, saved in"
    assert [text in record.getMessage() for record in warnings.records].count(True) == 1
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert curve(resumed) == curve(whole)


@pytest.mark.parametrize(
    "saving",
    [
        {"save_strategy": "best"},
        {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1},
        {"save_strategy": "epoch", "eval_strategy": "epoch"},
    ],
    ids=["best", "one kept", "epoch"],
)
def test_the_last_step_is_saved_whatever_is_best(saving, tmp_path, warnings):
    """Without the evaluation that is due, which a scheduler would not wait for."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1}
    settings = {"max_steps": 7, "eval_dataset": rows(4), **best, **saving}
    evaluated = []

    def worse_each_time(t):
        def evaluate(*args, **kwargs):
            evaluated.append(t.state.global_step)
            return {"eval_loss": float(len(evaluated))}

        t.evaluate = evaluate
        return t

    t = worse_each_time(trainer(tmp_path, callbacks=[At(6, lambda: os.kill(os.getpid(), signal.SIGTERM))], **settings))
    with pytest.raises(SystemExit):
        t.train()
    assert (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").is_file()
    assert 6 not in evaluated
    assert ["Its evaluation was left out" in record.getMessage() for record in warnings.records].count(True) == 1
    resumed = worse_each_time(trainer(tmp_path, **settings))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 7


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "PASSED_ON", 0.0)
    t = trainer(tmp_path, callbacks=[At(3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])])
    with pytest.raises(KeyboardInterrupt):
        t.train()
    assert t.state.global_step == 2
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_ctrl_c_pressed_again_and_again_stops(monkeypatch):
    monkeypatch.setattr(interruption, "PASSED_ON", 0.2)
    told = interruption.Interruption()

    def press():
        for _ in range(10):
            told._on_signal(signal.SIGINT, None)
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        press()


def test_a_signal_that_the_parent_ignores_stays_ignored(tmp_path):
    """As under nohup, which starts a program so that the end of its terminal is nothing to it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        t = trainer(tmp_path, callbacks=[At(2, lambda: os.kill(os.getpid(), signal.SIGHUP))])
        t.train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert t.state.global_step == t.state.max_steps
