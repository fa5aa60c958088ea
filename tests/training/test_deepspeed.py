"""DeepSpeed ZeRO-2 and ZeRO-3 by `accelerate launch`, 2 and 4 processes on CPUs joined by gloo: as one."""

import importlib.util

import pytest
import ranks
from one_process import compare
from rank_cases import CASES, TAKEN_APART

from fastkto.installation import add_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason=f"needs DeepSpeed: {add_command('deepspeed', 'deepspeed')}",
    ),
]

OF = {"zero2": [*CASES], "zero3": [*CASES, *TAKEN_APART]}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return ranks.launches(tmp_path_factory, OF.get, timeout=900)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("engine", "case"), [(engine, case) for engine in OF for case in OF[engine]])
def test_a_step_of_several_ranks_is_one_step_of_their_rows(launched, engine, case, world, tmp_path):
    compare(launched(engine, world), world, case, tmp_path)
