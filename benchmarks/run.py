"""`make bench`: head, loss, step and growth on this machine in minutes, with the spread over all runs so far.

    python benchmarks/run.py [--runs build/bench]

Every figure is a ratio of times of one interleaved run, a ratio of peaks, or a slope in bytes. Each run is kept in a
folder of its own; the table shows the median of the runs on this commit and device, the least and the most.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rows import DEMO_MODEL, ROOT

from fastkto.bench.machine import here, machine

HERE = Path(__file__).parent
SHAPE = "1024,576,49152"
STEP = ["--batch", "4", "--max_length", "512", "--steps", "3"]


def commands(output: Path) -> dict[str, list[str]]:
    """What is run, each writing `<subject>.json`."""
    python = [sys.executable]
    files = {subject: str(output / f"{subject}.json") for subject in ("head", "micro", "step", "scaling")}
    found = ["-o", "python_files=bench_*.py", "-o", "pythonpath=benchmarks/micro", "-p", "no:cacheprovider"]
    micro = [str(HERE / "micro"), *found, "--benchmark-only", "-q"]
    wanted = {
        "head": [str(HERE / "head_cpu.py"), "--shapes", SHAPE, "--rounds", "3", "--output", files["head"]],
        "micro": ["-m", "pytest", *micro, f"--benchmark-json={files['micro']}"],
        "step": ["-m", "fastkto", "bench", "--model", str(DEMO_MODEL), *STEP, "--output", files["step"]],
        "scaling": [str(HERE / "scaling.py"), "--systems", "fastkto", "--steps", "2", "--output", files["scaling"]],
    }
    if torch.cuda.is_available():
        del wanted["head"]  # of the CPU
    return {subject: python + arguments for subject, arguments in wanted.items()}


def figures(subject: str, result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of what a subject found."""
    if subject == "head":
        for name, ratio in result["shapes"][SHAPE]["ratios"].items():
            yield f"head: {name}", ratio["median"]
    elif subject == "micro":
        medians = {
            (each["group"], each["name"].partition("[")[2].rstrip("]").split("-")[0]): each["stats"]["median"]
            for each in result["benchmarks"]
        }
        for (group, name), median in medians.items():
            ours = medians.get((group, "fastkto")) or medians.get((group, "packed"))
            if ours is not None and median != ours:
                yield f"{group}: {name} / ours", median / ours
    elif subject == "step":
        first, *others = result["summary"].items()
        for name, found in others:
            yield f"step: {name} / {first[0]}, time", found["times_as_long"]
            yield f"step: {name} / {first[0]}, peak memory", found["peak_gib"] / first[1]["peak_gib"]
    else:
        for axis, systems in result["slopes"].items():
            yield f"growth with {axis}: KiB each", systems["fastkto"]["bytes"] / 1024


def main() -> None:
    """Run everything, keep the run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "bench")
    runs = parser.parse_args().runs.resolve()
    if not DEMO_MODEL.is_dir():
        sys.exit(f"the model of the step is {DEMO_MODEL}: make it with `make bench` or `make demo`")
    found: dict[str, float] = {}
    about = machine(here()["device"])
    folder = runs / about["date"].replace(":", "")
    folder.mkdir(parents=True)
    for subject, command in commands(folder).items():
        print(f"\n== {subject}", flush=True)
        subprocess.run(command, check=True, cwd=ROOT)
        result = json.loads((folder / f"{subject}.json").read_text(encoding="utf-8"))
        found |= dict(figures(subject, result))
    this = {**about, "figures": found}
    (folder / "figures.json").write_text(json.dumps(this, indent=1) + "\n", encoding="utf-8")
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("*/figures.json"))]
    same = [run for run in kept if (run["commit"], run["device"]) == (this["commit"], this["device"])]
    if str(this["commit"]).endswith("-dirty"):  # of which there may be several
        same = [this]
    print(f"\n{len(same)} runs of {this['commit']} on {this['device']}:")
    for name in found:
        values = [run["figures"][name] for run in same if name in run["figures"]]
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"  {name:62}{statistics.median(values):9.2f}   {spread}")


if __name__ == "__main__":
    main()
