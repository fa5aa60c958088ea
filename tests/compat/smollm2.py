"""SmolLM2-135M, float32, six steps through a host's own path and through fastkto: figures, CPU time, peak memory.

    python tests/compat/smollm2.py HOST MODEL FOLDER      HOST: trl, liger, llamafactory, ms-swift or axolotl

Runs in the environment of that host, each side in a process of its own, of one thread. MODEL: a folder that
transformers loads; FOLDER keeps the policy, which is MODEL after a few steps of plain training. Every figure of every
log line has to agree to 1e-3. Prints one JSON object. Times are CPU seconds, which other processes hardly touch.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import smollm2_hosts as hosts
import torch
import transformers

from fastkto.head.backends import BACKENDS

ROWS = Path(__file__).parents[2] / "examples/demo/train.jsonl"
RELATIVE = 1e-3
EXACT = ("loss", "grad_norm", "learning_rate")
SMALL = 0.1  # nats: other figures may come close to zero, and are compared relative to at least this
MEASURED = ("epoch", "time", "speed", "memory", "runtime", "per_second", "global_step")  # not a result of training


def main(host: str, model: Path, folder: Path) -> None:
    """Both sides, compared."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "reference").exists():
        (folder / "reference").symlink_to(model.resolve())
    if not (folder / "policy" / "config.json").exists():
        start("policy", host, folder)
    theirs, ours = (start(side, host, folder) for side in ("host", "fastkto"))
    assert theirs["calls_of_fastktos_head"] == 0 < ours["calls_of_fastktos_head"]
    differences = compare(ours["log"], theirs["log"])
    kl = [line["kl"] for line in theirs["log"] if "kl" in line] or [hosts.KL]
    assert min(kl) > 0.1, "z0 is clamped: the comparison would be vacuous"
    result = {
        "steps": hosts.STEPS,
        "kl": [round(min(kl), 2), round(max(kl), 2)],
        "largest_relative_difference": {name: float(f"{x:.1e}") for name, x in differences.items()},
        "calls_of_fastktos_head": ours["calls_of_fastktos_head"],
    }
    for name in ("cpu_seconds", "peak_GiB"):
        result[name] = {"host": round(theirs[name], 2), "fastkto": round(ours[name], 2)}
        result[name]["ratio"] = round(ours[name] / theirs[name], 2)
    print(json.dumps(result))


def start(side: str, host: str, folder: Path) -> dict:
    """What a process of its own found."""
    result = folder / f"{host}-{side}.json"
    command = [sys.executable, __file__, f"--{side}", host, folder, result]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(result.read_text())


def compare(ours: list[dict], theirs: list[dict]) -> dict[str, float]:
    """The largest relative difference of loss, of gradient norm and of all other figures, none above the bound."""
    assert len(ours) == len(theirs) == hosts.STEPS
    largest = {"loss": 0.0, "grad_norm": 0.0, "others": 0.0}
    for step, (mine, host) in enumerate(zip(ours, theirs, strict=True)):
        for name, value in host.items():
            if isinstance(value, str) or any(word in name for word in MEASURED):
                continue
            error = abs(mine[name] - value) / (abs(value) if name in EXACT else max(abs(value), SMALL))
            assert error <= RELATIVE, f"{name} of step {step}: {mine[name]!r} instead of {value!r}"
            kind = name if name in largest else "others"
            largest[kind] = max(largest[kind], error)
    return largest


def make_policy(folder: Path) -> None:
    """The reference after six steps of plain training on the rows: z0 is then above its clamp."""
    model, tokenizer = (
        hosts.load(folder / "reference"),
        transformers.AutoTokenizer.from_pretrained(folder / "reference"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    rows = read_rows()
    for step in range(hosts.STEPS):
        batch = hosts.collate(rows[step * hosts.BATCH : (step + 1) * hosts.BATCH], tokenizer)
        del batch["good"]
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")


def read_rows() -> list[dict]:
    """The first rows of the demo, of alternating labels, named as the rows of the hosts' tests."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    good, bad = ([row for row in rows if row["label"] is label] for label in (True, False))
    pairs = list(zip(good, bad, strict=False))[: hosts.STEPS * hosts.BATCH // 2]
    return [
        {"prompt": row["prompt"][0]["content"], "answer": row["completion"][0]["content"], "good": row["label"]}
        for pair in pairs
        for row in pair
    ]


def run(side: str, host: str, folder: Path) -> dict:
    """One side, measured around the stock `Trainer.train`, which every host ends up in."""
    found: dict = {"calls_of_fastktos_head": 0}
    for backend in BACKENDS.values():
        for name in ("forward", "forward_backward"):
            count(backend, name, found)
    stock = transformers.Trainer.train

    def train(trainer, *args, **kwargs):
        began = time.process_time()
        done = stock(trainer, *args, **kwargs)
        lines = [line for line in trainer.state.log_history if "loss" in line]
        found.update(cpu_seconds=time.process_time() - began, peak_GiB=peak(), log=lines)
        return done

    transformers.Trainer.train = train
    run_host = getattr(hosts, f"train_{host.replace('-', '_')}")
    out = folder / f"{host}-{side}"
    subprocess.run(["rm", "-rf", out], check=True)
    run_host(folder, read_rows(), out, fastkto=side == "fastkto")
    return found


def count(backend, name: str, found: dict) -> None:
    """Count the calls of a method of one object; one within another counts as well."""
    original = getattr(backend, name)

    def counted(*args, **kwargs):
        found["calls_of_fastktos_head"] += 1
        return original(*args, **kwargs)

    setattr(backend, name, counted)


def peak() -> float:
    """GiB of memory that this process held at most, libraries and both models included."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


if __name__ == "__main__":
    if sys.argv[1].startswith("--"):
        side, host, folder, result = sys.argv[1][2:], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
        found = make_policy(folder) if side == "policy" else run(side, host, folder)
        result.write_text(json.dumps(found))
    else:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
