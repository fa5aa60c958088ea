"""DeepSpeed ZeRO-2 and ZeRO-3 by `accelerate launch`, 2 and 4 processes on CPUs joined by gloo: as one."""

import importlib.util

import pytest
import ranks
from one_process import compare
from rank_cases import CASES, TAKEN_APART, model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'fastkto[deepspeed]'"
    ),
]

OF = {"zero2": [*CASES], "zero3": [*CASES, *TAKEN_APART]}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Folders of launches, each with the files of its cases; one launch an engine and world."""
    done = {}

    def of(engine, world):
        if (engine, world) not in done:
            folder = tmp_path_factory.mktemp(f"{engine}{world}")
            model().save_pretrained(folder / "model")
            code, said = ranks.launch(world, folder, *OF[engine], engine=engine, timeout=900)
            assert code == 0, said[-6000:]
            done[engine, world] = folder
        return done[engine, world]

    return of


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("engine", "case"), [(engine, case) for engine in OF for case in OF[engine]])
def test_a_step_of_several_ranks_is_one_step_of_their_rows(launched, engine, case, world, tmp_path):
    compare(launched(engine, world), world, case, tmp_path)
