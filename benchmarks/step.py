"""One optimizer step of KTO, ours against TRL 1.16's on the same rows and pairs: time, peak memory, equal losses.

    python benchmarks/step.py [--model DIR_OR_ID] [--data FILE] [--batch 8] [--steps 4] [--systems fastkto trl]

Each system is a process of its own, so that its peak resident memory is its own; steps alternate, so that drift
cancels; the first step of each is dropped. The reference is a second live model, gradient checkpointing is on, AdamW
steps. `trl-compact` scores completion positions only, as TRL does on CUDA; TRL as shipped scores all of them on a CPU.
`--systems fastkto fastkto-cached sft trl-sft` is the price of KTO over plain fine-tuning on the same completions.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parents[1]
SYSTEMS = ("fastkto", "trl", "trl-compact", "fastkto-cached", "sft", "trl-sft")
SAME_STEP = ({"fastkto", "trl", "trl-compact", "fastkto-cached"}, {"sft", "trl-sft"})


def work(options: argparse.Namespace) -> None:
    """A worker: waits for a line, takes a step, prints a line."""
    from step_systems import build
    from transformers import TrainerCallback

    class OnRequest(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline().strip():
                raise SystemExit
            self.start, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.spent = {"wall": time.perf_counter() - self.start, "cpu": time.process_time() - self.cpu}

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
                figures = {name: logs.get(name) for name in ("loss", "grad_norm", "kl", "num_tokens")}
                print(json.dumps({**self.spent, **figures, "peak_gib": peak}), file=answers, flush=True)

    answers, sys.stdout = sys.stdout, sys.stderr
    build(options, OnRequest()).train()


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Steps of every system in turn, the first one dropped, after checking that all took the same ones."""
    workers = {
        system: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker", system],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for system in options.systems
    }
    steps: dict[str, list[dict[str, float]]] = {system: [] for system in options.systems}
    for step in range(options.steps):
        for system, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("step\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                raise RuntimeError(f"{system} ended before step {step}: its message is above")
            steps[system].append(json.loads(line))
            print(f"step {step} {system:12} {line.strip()}", file=sys.stderr)
    for worker in workers.values():
        worker.kill()
    for same in SAME_STEP:
        first, *others = [system for system in options.systems if system in same] or [None]
        for system in others:
            for ours, theirs in zip(steps[first], steps[system], strict=True):
                for name in ("loss", "grad_norm"):
                    assert abs(ours[name] - theirs[name]) <= 1e-3 * abs(theirs[name]), f"{name}: {ours}, {theirs}"
    return {system: taken[1:] for system, taken in steps.items()}


def summary(steps: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians of each system, and its ratios to the first one."""

    def median(system: str, figure: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(figure(step) for step in steps[system])

    first = next(iter(steps))
    table = {}
    for system in steps:
        ratios = [theirs["cpu"] / ours["cpu"] for ours, theirs in zip(steps[first], steps[system], strict=True)]
        table[system] = {
            "wall_seconds": median(system, lambda step: step["wall"]),
            "cpu_seconds": median(system, lambda step: step["cpu"]),
            "peak_gib": max(step["peak_gib"] for step in steps[system]),
            "times_as_long": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / ".cache" / "SmolLM2-135M-Instruct-from-Q4_1"))
    parser.add_argument("--data", type=Path, help="real rows; unset: rows of the committed lengths")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS[:3]), choices=SYSTEMS)
    parser.add_argument("--scratch", default="/tmp/fastkto-benchmark")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    steps = measure(options)
    table = summary(steps)
    for system, figures in table.items():
        print(f"{system:12} " + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if options.output:
        settings = {k: v for k, v in vars(options).items() if k in ("batch", "max_length", "seed", "threads", "steps")}
        result = {
            **machine(),
            "model": Path(options.model).name,
            "data": options.data.name if options.data else "lengths.json",
            **settings,
            "summary": table,
            "steps": steps,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
