"""`fastkto.integrations.trl.KTOTrainer` on two processes: TRL's loss, gradient norm and metrics over both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hosts import compare
from tiny_trainer import rows
from trl_runs import build, ours, trl

LIBRARIES = {"ours": ours, "host": trl}


def main(folder):
    """What every rank runs."""
    for name, library in LIBRARIES.items():
        trainer = build(library, folder / name, evals=rows(16), eval_strategy="steps", eval_steps=3)
        trainer.train()
        (folder / f"{name}-{trainer.args.process_index}.json").write_text(json.dumps(trainer.state.log_history))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    folders = here, here.parent, here.parent / "helpers", os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(map(str, folders))
    environment = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stderr=(folder / f"{rank}.log").open("w"),  # not a pipe: a full one would stop a rank, and so the other
            cwd=here.parents[1],
        )
        for rank in range(2)
    ]
    codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0], "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_equal_the_host(logs, rank):
    compare(logs[f"ours-{rank}"], logs[f"host-{rank}"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
