"""How a step's time and peak memory grow with length, batch and vocabulary: measured points and fitted slopes.

    python benchmarks/scaling.py [--systems fastkto trl] [--steps 3] [--output FILE]

A random model of 4 layers and 256 hidden units with SmolLM2's tokenizer; rows of full length, half of each its prompt.
A slope is that of a line through the points of one axis, the others held at their first value.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from models import random_model
from rows import DEMO_MODEL

from fastkto.bench.case import Case
from fastkto.bench.compare import measure, summary
from fastkto.bench.machine import here, machine
from fastkto.bench.systems import SYSTEMS

AXES = {
    "max_length": [512, 1024, 2048, 4096],
    "batch": [4, 8, 16],
    "vocabulary": [49152, 98304, 147456],
}
BASE = {name: values[0] for name, values in AXES.items()}
GIB = 2**30


def points(axis: str) -> list[dict[str, int]]:
    return [BASE | {axis: value} for value in AXES[axis]]


def measure_point(point: dict[str, int], systems: list[str], steps: int, threads: int) -> dict[str, Any]:
    """Medians of every system at one point."""
    with tempfile.TemporaryDirectory(prefix="fastkto-bench-") as folder:
        model = random_model(Path(folder), vocabulary=point["vocabulary"])
        case = Case.of_full_length(model, point["batch"], point["max_length"], steps, threads=threads, **here())
        found = summary(measure({system: (system, case) for system in systems}))
    return {system: {name: found[system][name] for name in ("wall_seconds", "peak_gib")} for system in systems}


def slopes(axis: str, measured: list[dict[str, Any]], systems: list[str]) -> dict[str, dict[str, float]]:
    """Bytes and microseconds for each token of the batch, or each entry of the vocabulary, and how straight it is."""
    where = points(axis)
    x = [point["vocabulary"] if axis == "vocabulary" else point["batch"] * point["max_length"] for point in where]
    fits = {}
    for system in systems:
        peaks = np.array([point[system]["peak_gib"] * GIB for point in measured])
        seconds = np.array([point[system]["wall_seconds"] for point in measured])
        bytes_each, microseconds = np.polyfit(x, peaks, 1)[0], 1e6 * np.polyfit(x, seconds, 1)[0]
        fits[system] = {"bytes": bytes_each, "microseconds": microseconds, "r": float(np.corrcoef(x, peaks)[0, 1])}
    return fits


def main() -> None:
    """Print every point, then the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=["fastkto", "trl"], choices=tuple(SYSTEMS))
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=tuple(AXES))
    parser.add_argument("--steps", type=int, default=3, help="the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not DEMO_MODEL.is_dir():
        sys.exit(f"the tokenizer is that of {DEMO_MODEL}: make it with `make demo`")
    known: dict[str, dict[str, Any]] = {}
    for axis in options.axes:
        for point in points(axis):
            key = json.dumps(point)
            if key not in known:
                known[key] = measure_point(point, options.systems, options.steps, options.threads)
                for system, figures in known[key].items():
                    print(
                        f"{key} {system:8} {figures['wall_seconds']:8.2f} s {figures['peak_gib']:6.2f} GiB", flush=True
                    )
    fitted = {
        axis: slopes(axis, [known[json.dumps(p)] for p in points(axis)], options.systems) for axis in options.axes
    }
    for axis, systems in fitted.items():
        unit = "entry of the vocabulary" if axis == "vocabulary" else f"token (more {axis})"
        for system, fit in systems.items():
            each = f"{fit['bytes'] / 1024:8.1f} KiB and {fit['microseconds']:8.1f} us a {unit}"
            print(f"{system:8} {each}, r {fit['r']:.3f}")
    if options.output:
        measured = [{**json.loads(key), "systems": found} for key, found in known.items()]
        about = {**machine(here()["device"], options.threads), "steps": options.steps}
        result = {**about, "points": measured, "slopes": fitted}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
