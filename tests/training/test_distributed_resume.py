"""2 ranks, one of them killed, then a resume: the loss curve continues bit for bit, under every engine."""

import importlib.util
import json

import pytest
import rank_resume
import ranks

from fastkto.installation import add_command
from fastkto.training.faults.checkpoints import why_torn

pytestmark = pytest.mark.slow

NO_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason=f"needs DeepSpeed: {add_command('deepspeed', 'deepspeed')}"
)
ENGINES = [
    "ddp",
    "fsdp2",
    "fsdp2, sharded checkpoints",
    *(pytest.param(engine, marks=NO_DEEPSPEED) for engine in ("zero2", "zero3")),
]


def run(folder, engine, *arguments):
    folder.mkdir(exist_ok=True)
    return ranks.launch(2, folder, *arguments, engine=engine, script="rank_resume.py", timeout=300)


def results(folder, variant):
    return [json.loads((folder / f"{variant}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_ranks_go_on_as_if_nothing_had_been(engine, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, said = run(whole, engine, "run", *rank_resume.VARIANTS)
    assert code == 0, said[-4000:]
    for variant, moment in rank_resume.VARIANTS.items():
        code, said = run(killed, engine, "die", variant)
        assert code != 0
        assert not (killed / f"{variant}-0.json").exists(), "the run was not ended"
        saved = sorted(path.name for path in (killed / variant / "out").glob("checkpoint-*"))
        assert saved[0] == "checkpoint-2"
        if moment == rank_resume.IN_A_CHECKPOINT:  # of which rank 1 wrote nothing more
            assert why_torn(killed / variant / "out" / "checkpoint-4") is not None
    code, said = run(killed, engine, "resume", *rank_resume.VARIANTS)
    assert code == 0, said[-4000:]
    for variant in rank_resume.VARIANTS:
        expected, found = results(whole, variant), results(killed, variant)
        assert len(expected[0]["curve"]) == 8
        assert found == expected, variant
