"""Two processes: one z0, one mean over rows, figures of all ranks, and no hang where a rank lacks a class."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from leaving import leave_group
from tiny import tiny_llama
from tiny_trainer import STILL, Gradients, by_hand, noisy, rows, rows_seen, steps, trainer, weighted
from tolerance import assert_close

from fastkto.errors import InputError

ONE_CLASS_A_RANK = {"desirable": lambda i: i % 8 < 4}
WEIGHTS = [0.1, 0.2, 0.0, 0.3, 4.0, 3.0, 2.0, 5.0] * 2 + [1.0, 0.0, 0.5, 2.0]
KINDS = {"None": {}, "False": {"packing": False}, "weighted": {}}
SETTINGS = {**STILL, "beta": 0.5, "desirable_weight": 1.5, "max_steps": -1, "num_train_epochs": 1}

OTHERWISE = {
    "beta": lambda rank: {"beta": 0.1 + rank},
    "seed": lambda rank: {"seed": 3 + rank},
    "max_steps": lambda rank: {"max_steps": 3 + rank},
    "data": lambda rank: {"train_dataset": rows(20 + rank)},
}
"""What one rank was started with and the other not."""


def reference():
    """In two of the three steps k is negative on one rank: clamped there, before the mean, z0 would be another."""
    return noisy(tiny_llama(), seed=4)


def data_of(kind):
    data = rows(20, **ONE_CLASS_A_RANK)
    return weighted(data, WEIGHTS) if kind == "weighted" else data


def run(folder, kind=None, **changes):
    gradients = Gradients()
    own = {"model": tiny_llama(), "ref_model": reference(), "callbacks": [gradients]}
    t = trainer(folder, train_dataset=data_of(kind), eval_dataset=rows(7), **own, **{**SETTINGS, **changes})
    t.train()
    return t, gradients


def main(folder):
    """What every rank runs."""
    for kind, settings in KINDS.items():
        t, gradients = run(folder / kind, kind, **settings)
        figures = t.evaluate()
        rank = t.args.process_index
        result = {
            "steps": steps(t),
            "eval": {k: v for k, v in figures.items() if "second" not in k and "time" not in k},
        }
        (folder / f"{kind}-{rank}.json").write_text(json.dumps(result))
        torch.save(gradients.steps, folder / f"{kind}-{rank}.pt")
    cached, _ = run(folder / "cached", precompute_ref_log_probs=True)
    (folder / f"cached-{rank}.json").write_text(json.dumps({"steps": steps(cached)}))
    assert cached.reference.cache.misses == 0
    shuffled = trainer(folder / "shuffled", train_dataset=rows(16), max_steps=-1, num_train_epochs=3)
    (folder / f"shuffled-{rank}.json").write_text(json.dumps(rows_seen(shuffled)))
    refused = {}
    for name, changes in OTHERWISE.items():
        try:
            trainer(folder / "otherwise", **changes(rank))
        except InputError as error:
            refused[name] = str(error)
    (folder / f"refused-{rank}.json").write_text(json.dumps(refused))
    leave_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests, path = Path(__file__).parents[1], os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "helpers"), path]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            cwd=tests.parent,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error[-3000:] for error in errors)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_over_two_ranks_is_one_step_over_their_rows(two_ranks, kind):
    """Bugs of peers: KL clamped or averaged per rank; gradients scaled by ranks; metrics of the main process only.

    Weights: those of the ranks add up to 0.6 and 14, so that a mean of the ranks' means would be another.
    """
    lines = json.loads((two_ranks / f"{kind}-0.json").read_text())["steps"]
    found = torch.load(two_ranks / f"{kind}-0.pt")
    other = torch.load(two_ranks / f"{kind}-1.pt")
    data = trainer(two_ranks / "parent", train_dataset=data_of(kind)).train_dataset
    narrow = tiny_llama(), reference()
    wide = tiny_llama().double(), reference().double()
    batches = [([0, 1, 2, 3], [4, 5, 6, 7]), ([8, 9, 10, 11], [12, 13, 14, 15]), ([16, 17, 18, 19], [0, 1, 2, 3])]
    assert len(lines) == len(found) == 3
    for line, gradients, same_elsewhere, ranks in zip(lines, found, other, batches, strict=True):
        results = []
        for models in (wide, narrow):
            models[0].zero_grad()
            loss = by_hand(*models, data, ranks, beta=0.5, weights=(1.5, 1.0), shared_z0=True)
            loss.backward()
            results.append((loss, {n: p.grad.clone() for n, p in models[0].named_parameters()}))
        (exact, oracle), (same_loss, same) = results
        assert_close(torch.tensor(line["loss"], dtype=torch.float32), exact, same_loss, name="loss")
        for name, gradient in gradients.items():
            assert torch.equal(gradient, same_elsewhere[name.removeprefix("module.")]), name
            assert_close(gradient, oracle[name.removeprefix("module.")], same[name.removeprefix("module.")], name=name)
        labels = {data[i]["label"] for batch in ranks for i in batch}
        assert [name in line for name in ("rewards/chosen", "rewards/rejected")] == [True in labels, False in labels]
        assert line["kl"] > 0


def test_both_ranks_log_the_same_and_the_cache_changes_nothing(two_ranks):
    for kind in (*KINDS, "cached"):
        first, second = (json.loads((two_ranks / f"{kind}-{rank}.json").read_text()) for rank in range(2))
        assert first == second
    plain, cached = (json.loads((two_ranks / f"{kind}-0.json").read_text())["steps"] for kind in ("None", "cached"))
    assert [line["kl/raw"] for line in plain] == [line["kl/raw"] for line in cached]


@pytest.mark.parametrize("name", OTHERWISE)
def test_ranks_that_were_started_otherwise_are_refused_by_name(two_ranks, name):
    """They hung, or trained on a mixture."""
    for rank in range(2):
        message = json.loads((two_ranks / f"refused-{rank}.json").read_text())[name]
        assert message.startswith(f"{name}: got ")
        assert "on rank 0 and" in message


def test_every_epoch_is_shuffled_anew_and_shared_out_whole(two_ranks):
    seen = [json.loads((two_ranks / f"shuffled-{rank}.json").read_text()) for rank in range(2)]
    epochs = [[batch for ranks in seen for batch in ranks[i : i + 2]] for i in (0, 2, 4)]
    assert all(sorted(row for batch in epoch for row in batch) == list(range(16)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
