"""An output directory belongs to one run."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_trainer import steps, trainer

from fastkto.errors import InputError
from fastkto.training.output.folder import HOLDER, LOCK

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    """A process that holds the folder."""
    (tmp_path / "out").mkdir()
    argv = [sys.executable, "-c", HOLD, str(tmp_path / "out" / LOCK)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", ["dangling", "circular", "too long", "a file"])
def test_a_place_where_no_folder_can_be_is_refused_before_anything(kind, tmp_path):
    out = tmp_path / ("o" * 300 if kind == "too long" else "out")
    if kind in ("dangling", "circular"):
        out.symlink_to(tmp_path / ("out" if kind == "circular" else "nowhere"))
    elif kind == "a file":
        out.write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="(?s)^output_dir: got .*, expected a (place|directory).*Choose another"):
        trainer(tmp_path, output_dir=str(out))
    assert sorted(tmp_path.iterdir()) == before


def test_a_second_run_is_refused_by_name(other_run, tmp_path):
    t = trainer(tmp_path)
    (tmp_path / "out" / HOLDER).write_text("process 7 on node3\n")
    expected = "^output_dir: got .*out', expected a folder that no other run is writing to, but process 7 on node3 is"
    with pytest.raises(InputError, match=expected):
        t.train()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {LOCK, HOLDER}
    assert t.state.global_step == 0


def test_a_dead_process_frees_the_folder(other_run, tmp_path):
    other_run.kill()
    other_run.wait()
    t = trainer(tmp_path)
    t.train()
    assert t.state.global_step == 3
    assert not (tmp_path / "out" / HOLDER).exists()


def test_a_fresh_run_moves_an_older_ones_files_aside_and_says_so(tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 1}
    first = trainer(tmp_path, **saving)
    first.train()
    first.save_model()
    notes = tmp_path / "out" / "notes.txt"
    notes.write_text("mine")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    trainer(tmp_path, max_steps=1, seed=7, **saving).train()
    aside = tmp_path / "out" / "earlier-1"
    assert f"holds an earlier run. Its files are now in {aside}." in caplog.text
    for name in ("metrics.jsonl", "run.json", "model.safetensors"):
        assert (aside / name).read_bytes() == kept[name]
    assert {path.name for path in aside.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1"}
    assert notes.read_text() == "mine"
    resumed = trainer(tmp_path, max_steps=2, seed=7, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert [line["step"] for line in steps(resumed)] == [1, 2], "of the new run, not of the old one"
    trainer(tmp_path, **saving).train()
    assert (tmp_path / "out" / "earlier-2" / "checkpoint-2").is_dir()


def test_files_that_are_only_called_like_those_of_a_run_stay(tmp_path):
    trainer(tmp_path).train()
    for name in ("README.md", "tokenizer_notes.py", "checkpoint-notes.md"):
        (tmp_path / "out" / name).write_text("# mine")
    trainer(tmp_path).train()
    for name in ("README.md", "tokenizer_notes.py", "checkpoint-notes.md"):
        assert (tmp_path / "out" / name).read_text() == "# mine"
    assert (tmp_path / "out" / "earlier-1" / "metrics.jsonl").is_file()


def test_a_checkpoint_of_another_folder_starts_a_run_here(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path / "a", max_steps=2, **saving).train()
    trainer(tmp_path / "b", beta=0.5, **saving).train()
    trainer(tmp_path / "b", **saving).train(resume_from_checkpoint=str(tmp_path / "a" / "out" / "checkpoint-2"))
    assert (tmp_path / "b" / "out" / "earlier-1" / "checkpoint-3").is_dir()


def test_a_requeued_job_starts_where_there_is_no_checkpoint(tmp_path, caplog):
    t = trainer(tmp_path)
    t.train(resume_from_checkpoint=True)
    assert t.state.global_step == 3
    assert "no whole checkpoint in" in caplog.text


def test_a_folder_that_cannot_be_locked_is_said(tmp_path, monkeypatch, caplog):
    import filelock

    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    trainer(tmp_path).train()
    assert "cannot be locked (FileSystem does not appear to support flock)" in caplog.text
    assert Path(tmp_path / "out" / "metrics.jsonl").is_file()
