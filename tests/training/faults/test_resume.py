"""`kill -9` at many moments, then resume: the same loss curve and the same weights, bit for bit."""

import json
import shutil
import signal
from pathlib import Path

import crashes
import pytest
import torch
from tiny_trainer import rows, steps, trainer

from fastkto.errors import InputError
from fastkto.training.faults.checkpoints import why_torn

VARIANTS = {
    "full": {"lora": False, "workers": 0, "cached": True},
    "lora, 2 workers": {"lora": True, "workers": 2, "cached": False},
    "full, 2 workers": {"lora": False, "workers": 2, "cached": False},
    "lora": {"lora": True, "workers": 0, "cached": True},
}
CACHED = {
    "full, 2 workers, a cache": {"lora": False, "workers": 2, "cached": True},
    "lora, 2 workers, a cache": {"lora": True, "workers": 2, "cached": True},
}
"""For the moments of the cache, so that they meet workers too."""
ALL = VARIANTS | CACHED


@pytest.fixture(scope="module")
def process():
    """Runs `crashes.run` in a fresh process that has its imports already; the exit code."""
    return crashes.in_a_process


@pytest.fixture(scope="module")
def undisturbed(process, tmp_path_factory):
    """The result of a variant's run that nothing ends, computed once."""
    results = {}

    def of(name):
        if name not in results:
            folder = tmp_path_factory.mktemp("whole")
            assert process(folder, ALL[name]) == 0
            results[name] = json.loads((folder / "result.json").read_text())
        return results[name]

    return of


def variants_of(moment):
    """The variants that a moment can meet: for those of the cache, where there is one."""
    return [name for name in ALL if ALL[name]["cached"]] if moment in crashes.EARLY else [*VARIANTS]


QUICK = [(moment, variants_of(moment)[turn % len(variants_of(moment))]) for turn, moment in enumerate(crashes.MOMENTS)]
"""Every moment with one variant, in turn."""
REST = [(moment, name) for moment in (*crashes.MOMENTS, *crashes.MORE) for name in variants_of(moment)]
REST = [pair for pair in REST if pair not in QUICK]


def check(process, undisturbed, folder, moment, name):
    code = process(folder, ALL[name], moment)
    if not (moment.startswith("by the clock") and code == 0):  # the clock may be later than the end
        assert code == -signal.SIGKILL
        assert process(folder, ALL[name]) == 0
    compare(folder, undisturbed(name))


def compare(folder, expected):
    result = json.loads((folder / "result.json").read_text())
    assert len(expected["curve"]) == 8
    assert result["curve"] == expected["curve"]
    assert result["file"] == expected["file"]
    assert result["weights"] == expected["weights"]
    assert result["misses"] == 0


@pytest.mark.parametrize(("moment", "name"), QUICK, ids=map(", ".join, QUICK))
def test_a_killed_run_goes_on_as_if_nothing_had_been(process, undisturbed, moment, name, tmp_path):
    check(process, undisturbed, tmp_path, moment, name)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "name"), REST, ids=map(", ".join, REST))
def test_every_moment_in_every_variant(process, undisturbed, moment, name, tmp_path):
    check(process, undisturbed, tmp_path, moment, name)


@pytest.mark.parametrize("name", ["full", *(pytest.param(x, marks=pytest.mark.slow) for x in VARIANTS if x != "full")])
@pytest.mark.parametrize("again", crashes.AFTER_A_RESUME)
def test_killed_again_right_after_a_resume(process, undisturbed, again, name, tmp_path):
    for moment, then in (("between the gradients and the optimizer", None), (None, again), (None, again)):
        assert process(tmp_path, VARIANTS[name], moment, then) == -signal.SIGKILL
    assert process(tmp_path, VARIANTS[name]) == 0
    compare(tmp_path, undisturbed(name))


def test_a_run_at_its_end_takes_no_other_step(tmp_path):
    """Ended after its last checkpoint, within an epoch: the Trainer would train one step more than max_steps."""
    settings = {"train_dataset": rows(20), "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    first, again = trainer(tmp_path, **settings), trainer(tmp_path, **settings)
    first.train()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert curve_of(again) == curve_of(first)
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, first.model.state_dict()[name]), name


def test_the_variants_differ(undisturbed):
    assert undisturbed("full")["curve"] != undisturbed("lora")["curve"]
    assert undisturbed("full")["weights"] != undisturbed("full, 2 workers")["weights"]


# Torn checkpoints


def curve_of(t):
    return [crashes.untimed(line) for line in steps(t)]


def cut(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


TORN = {
    "the state is missing": (lambda folder: (folder / "trainer_state.json").unlink(), "written last, is not there"),
    "half of the state": (cut("trainer_state.json"), "trainer_state.json cannot be read"),
    "another kind of state": (lambda f: (f / "trainer_state.json").write_text("[]"), "has no global_step"),
    "half of the weights": (cut("model.safetensors"), "model.safetensors is shorter than it says"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file of weights"),
    "half of the optimizer": (cut("optimizer.pt"), "optimizer.pt ends too early"),
    "half of the schedule": (cut("scheduler.pt"), "scheduler.pt ends too early"),
    "half of the random state": (cut("rng_state.pth"), "rng_state.pth ends too early"),
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    t = trainer(folder, train_dataset=rows(20), max_steps=4, save_strategy="steps", save_steps=2)
    t.train()
    return folder / "out", curve_of(t)


@pytest.mark.parametrize("name", TORN)
def test_a_torn_checkpoint_is_recognised_and_the_one_before_it_used(name, two_checkpoints, tmp_path, warnings):
    source, expected = two_checkpoints
    shutil.copytree(source, tmp_path / "out")
    damage, words = TORN[name]
    damage(tmp_path / "out" / "checkpoint-4")
    settings = {"train_dataset": rows(20), "max_steps": 4}
    t = trainer(tmp_path, **settings)
    with pytest.raises(InputError, match="^resume_from_checkpoint: got") as caught:
        t.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert words in str(caught.value)
    assert "Name checkpoint-2, the newest that is whole." in str(caught.value)
    t.train(resume_from_checkpoint=True)
    assert curve_of(t) == expected
    assert any("checkpoint-4 is torn" in record.getMessage() for record in warnings.records)


def test_where_the_only_one_is_torn_the_run_starts_anew_and_keeps_it(two_checkpoints, tmp_path, warnings):
    """A job that was killed in its first write and put back into the queue needs no hand."""
    source, expected = two_checkpoints
    shutil.copytree(source / "checkpoint-2", tmp_path / "out" / "checkpoint-2")
    torn = tmp_path / "out" / "checkpoint-2" / "scheduler.pt"
    torn.write_bytes(torn.read_bytes()[:-9])
    t = trainer(tmp_path, train_dataset=rows(20), max_steps=4)
    t.train(resume_from_checkpoint=True)
    assert curve_of(t) == expected
    assert (tmp_path / "out" / "earlier-1" / "checkpoint-2" / "scheduler.pt").is_file()
    said = "\n".join(record.getMessage() for record in warnings.records)
    assert "checkpoint-2 is torn" in said
    assert "There is no whole checkpoint in" in said


def test_a_missing_part_of_sharded_weights_is_named(two_checkpoints, tmp_path):
    source, _ = two_checkpoints
    shutil.copytree(source / "checkpoint-4", tmp_path / "checkpoint-4")
    index = tmp_path / "checkpoint-4" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}')
    assert "model-00002-of-00002.safetensors, which" in why_torn(tmp_path / "checkpoint-4")
    index.write_text("{}")
    assert "index.json cannot be read" in why_torn(tmp_path / "checkpoint-4")


def test_a_checkpoint_that_is_overwritten_counts_as_torn_until_it_is_done(tmp_path):
    settings = {"train_dataset": rows(20), "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, **settings).train()
    t = trainer(tmp_path, **settings)
    states = []
    stock = t._save_rng_state
    t._save_rng_state = lambda folder: (states.append(why_torn(Path(folder))), stock(folder))
    t.train()
    assert states == ["trainer_state.json, which is written last, is not there"]
    assert why_torn(tmp_path / "out" / "checkpoint-2") is None
