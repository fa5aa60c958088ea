"""2 and 4 processes by `accelerate launch`, joined by gloo: every engine's loss and gradients are one process's."""

import json
import re
import time
from types import SimpleNamespace

import pytest
import ranks
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from training import STILL, by_hand, rows, trainer

from fastkto.loading import keep_float32_outputs

FOUR = [pytest.param(engine, 4, marks=pytest.mark.slow) for engine in ("ddp", "fsdp2")]
WORLDS = [("ddp", 2), ("fsdp2", 2), *FOUR]
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Folders of launches, each with the files of its cases; one launch an engine and world."""
    done = {}

    def of(engine, world):
        if (engine, world) not in done:
            folder = tmp_path_factory.mktemp(f"{engine}{world}")
            code, said = ranks.launch(world, folder, *ranks.CASES, engine=engine)
            assert code == 0, said[-4000:]
            done[engine, world] = folder
        return done[engine, world]

    return of


def expected(folder, case):
    """What one process computes the same from: token ids, policy and reference in float64."""
    data, settings = ranks.CASES[case]
    data_rows = rows(data["count"], desirable=data["desirable"])
    tokens = trainer(folder, train_dataset=data_rows, per_device_train_batch_size=4, **STILL).train_dataset
    policy, reference = ranks.model(adapter=settings.get("adapter", False)).double(), ranks.tiny_llama().double()
    if settings.get("precompute_ref_log_probs"):
        reference = ranks.model().double()
    return tokens, policy, reference


def close(a, b, name):
    scale = b.abs().max().item()
    assert (a.double() - b.double()).abs().max().item() <= RELATIVE * max(scale, 1e-6), name


@pytest.mark.parametrize("case", ranks.CASES)
@pytest.mark.parametrize(("engine", "world"), WORLDS)
def test_a_step_of_several_ranks_is_one_step_of_their_rows(launched, engine, world, case, tmp_path):
    folder = launched(engine, world)
    found = [torch.load(folder / f"{case}-{rank}.pt", weights_only=False) for rank in range(world)]
    tokens, policy, reference = expected(tmp_path, case)
    accumulation = ranks.CASES[case][1].get("gradient_accumulation_steps", 1)
    batches = micro_steps(len(tokens), world)
    groups = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    assert len(found[0]["steps"]) == len(groups)
    for step, group in enumerate(groups):
        total = sum(len(batch) for micro in group for batch in micro)
        policy.zero_grad()
        loss = 0.0
        for micro in group:
            part = by_hand(policy, reference, tokens, micro, beta=0.5, weights=(1.5, 1.0), shared_z0=True)
            part = part * sum(map(len, micro)) / total
            part.backward()
            loss += part.item()
        exact = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
        for rank in found:
            assert rank["steps"][step]["loss"] == found[0]["steps"][step]["loss"]
            assert abs(rank["steps"][step]["loss"] - loss) <= RELATIVE * abs(loss)
            assert rank["gradients"][step].keys() == exact.keys()
            for name, gradient in rank["gradients"][step].items():
                close(gradient, exact[name], f"step {step}: {name}")


def micro_steps(rows, world, size=4):
    """Row numbers of every rank's batch in every micro-step; the sampler completes the last one from the beginning."""
    count = -(-rows // (size * world)) * size * world
    order = [i % rows for i in range(count)]
    batches = [order[i : i + size] for i in range(0, count, size)]
    return [batches[i : i + world] for i in range(0, len(batches), world)]


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
