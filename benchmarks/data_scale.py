"""100,000 rows from a file to a trainer, ours and TRL's: CPU seconds and the highest memory of a process each.

    python benchmarks/data_scale.py [--rows 100000] [--out benchmarks/results]

Each side reads the same chat rows by its own reader, builds its `KTOTrainer` on a tiny model and stops there. The
answer is checked first: both hold as many rows, and of every 97th the same tokens of prompt and completion and label.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastkto.bench.machine import machine

WORDS = ("the", "shop", "is", "open", "on", "sunday", "and", "my", "parcel", "came", "late", "but", "whole", "thanks")
SIDES = {
    "fastkto": """
import fastkto
from fastkto import KTOConfig, KTOTrainer
data = fastkto.read_rows("rows.jsonl")
kept = {"prompt": "prompt_ids", "completion": "completion_ids", "label": "label"}
""",
    "trl": """
from datasets import load_dataset
from trl import KTOConfig, KTOTrainer
data = load_dataset("json", data_files="rows.jsonl", split="train")
kept = {"prompt": "prompt_ids", "completion": "completion_ids", "label": "label"}
""",
}
BOTH = """
import hashlib, json, sys
args = KTOConfig("out", use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=4)
t = KTOTrainer("model", args=args, train_dataset=data)
digest = hashlib.blake2b()
names = t.train_dataset.column_names
for row in t.train_dataset.select(range(0, len(t.train_dataset), 97)):
    digest.update(json.dumps([row[name] for name in kept.values()]).encode())
print(json.dumps({"rows": len(t.train_dataset), "digest": digest.hexdigest()}))
"""


def main() -> None:
    """Write the rows, run both sides in turn, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), options.rows)
        found = {side: _run(side, Path(folder)) for side in SIDES}
    ours, theirs = found["fastkto"], found["trl"]
    assert ours["said"] == theirs["said"], f"the two sides hold different rows: {found}"
    about = machine("cpu", threads=1)
    result = {**about, "rows": options.rows, "results": found}
    for name, unit in (("cpu_seconds", "s of CPU"), ("peak_mib", "MiB")):
        print(f"{unit:10} fastkto {ours[name]:7.0f}   TRL {theirs[name]:7.0f}   ratio {theirs[name] / ours[name]:.2f}")
    path = options.out / f"data-scale_cpu-{os.cpu_count()}-cores_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _prepare(folder: Path, rows: int) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
    from tiny import tiny_llama, tiny_tokenizer

    tiny_llama().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            prompt = " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(12 + i % 17))
            answer = " ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(10 + i % 29))
            row: dict[str, Any] = {
                "prompt": [{"role": "user", "content": f"{i}: {prompt}"}],
                "completion": [{"role": "assistant", "content": answer}],
                "label": i % 3 > 0,
            }
            file.write(json.dumps(row) + "\n")


def _run(side: str, folder: Path) -> dict[str, Any]:
    """A process of its own, with a cache of its own; children's CPU and their highest memory."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(folder / f"cache-{side}"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    measured = "import resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_maxrss)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", SIDES[side] + BOTH + measured]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    *_, said, peak = done.stdout.strip().splitlines()
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"said": json.loads(said), "cpu_seconds": round(seconds, 1), "peak_mib": round(int(peak) / 1024)}


if __name__ == "__main__":
    main()
