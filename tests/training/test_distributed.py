"""2 and 4 processes by `accelerate launch`, joined by gloo: every engine's loss and gradients are one process's."""

import json
import re
import time
from types import SimpleNamespace

import pytest
import ranks
import torch
from one_process import compare
from rank_cases import CASES
from torch.distributed.fsdp import MixedPrecisionPolicy

from fastkto.training.loading import keep_float32_outputs

FOUR = [pytest.param(engine, 4, marks=pytest.mark.slow) for engine in ("ddp", "fsdp2")]
WRAPPED = ("ranks of one class", "an adapter switched off", "other numbers of forwards")
WORLDS = [("ddp", 2), ("fsdp2", 2), *FOUR]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return ranks.launches(tmp_path_factory, lambda engine: WRAPPED if "checkpointed" in engine else CASES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("engine", "world"), WORLDS)
def test_a_step_of_several_ranks_is_one_step_of_their_rows(launched, engine, world, case, tmp_path):
    compare(launched(engine, world), world, case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", WRAPPED)
def test_layers_that_fsdp_checkpoints_itself(launched, case, tmp_path):
    compare(launched("fsdp2, layers checkpointed", 2), 2, case, tmp_path)


def test_sharding_does_not_round_log_probs():
    """accelerate's policy for bf16 casts what the model returns: 300 nats would lose one."""
    half = torch.bfloat16
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half, output_dtype=half)
    plugin = SimpleNamespace(mixed_precision_policy=policy)
    keep_float32_outputs(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half)


def test_a_killed_rank_ends_the_job_soon_and_says_so(tmp_path):
    start = time.monotonic()
    code, said = ranks.launch(2, tmp_path, engine="dies", timeout=120)
    assert code != 0
    assert time.monotonic() - start < 90
    assert re.search(r"exitcode\s*: -9|another process of this run is gone \(.*peer", said), said[-3000:]


@pytest.fixture(scope="module")
def bad_days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    code, said = ranks.launch(2, folder, engine="bad days")
    assert code == 0, said[-3000:]
    return folder


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_number_of_one_rank_that_is_not_finite_is_every_ranks_matter(action, bad_days):
    first, second = (json.loads((bad_days / f"{action}-{rank}.json").read_text()) for rank in range(2))
    assert first["steps"] == second["steps"] == (2 if action == "stop" else 4)
    assert first["skipped"] == second["skipped"] == 1
    assert first["weights"] == second["weights"]
    assert first["finite"]
    if action == "stop":
        assert "the policy's log-prob of rows" in second["error"]
        assert "NaN or inf in the gradients" in first["error"]
    else:
        assert first["error"] is second["error"] is None


def test_sigterm_of_one_rank_ends_all_at_the_same_step(bad_days):
    left = [json.loads((bad_days / f"left-{rank}.json").read_text()) for rank in range(2)]
    assert left == [[143, 4], [143, 4]]
    assert (bad_days / "out" / "checkpoint-4").is_dir()
