"""Steps of several systems in turn, each in a process of its own: equal losses first, then times and peak memory."""

import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from json import loads
from pathlib import Path
from typing import NamedTuple

from fastkto.bench.case import Case
from fastkto.bench.systems import SAME_STEP
from fastkto.errors import ProcessFailed

Step = dict[str, float]
ALLOWED = {False: {"loss": 1e-3, "grad_norm": 1e-3}, True: {"loss": 2e-2, "grad_norm": 1e-1}}
"""Relative difference of two systems' steps, in float32 and in 16 bits."""
LINES = 15  # of a system's output that are shown where it ends early


class Worker(NamedTuple):
    """A system's process, and the name it goes by."""

    name: str
    system: str
    process: "subprocess.Popen[str]"
    log: Path
    """What its libraries print."""


def measure(
    cases: dict[str, tuple[str, Case]], *, progress: Callable[[str], None] = lambda _: None
) -> dict[str, list[Step]]:
    """Counted steps by name, from `{name: (system, case)}`, one step of each in turn so that drift cancels.

    Raises:
        ProcessFailed: a system ended early, took another step than its peers on the same case, or had to free what
            its allocator kept, on a GPU that is too small for all of them at once.
    """
    steps: dict[str, list[Step]] = {name: [] for name in cases}
    (count,) = {case.steps for _, case in cases.values()}
    with tempfile.TemporaryDirectory(prefix="fastkto-bench-") as folder:
        workers: list[Worker] = []
        try:
            for name, (system, case) in cases.items():
                workers.append(_start(name, system, case, Path(folder)))
                _answer(workers[-1], "step 0")  # before the next one: two at once would take many times as long
            for step in range(count):
                for worker in workers:
                    steps[worker.name].append(_step(worker, step))
                    _check_room(worker, steps[worker.name][-1], len(workers))
                    wall = steps[worker.name][-1]["wall"]
                    progress(f"step {step} {worker.name}: {wall:.2f} s{' (not counted)' if step == 0 else ''}")
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
    _check_equal(cases, steps)
    return {name: taken[1:] for name, taken in steps.items()}


def _start(name: str, system: str, case: Case, folder: Path) -> Worker:
    file = folder / f"{name}.json"
    file.write_text(case.to_json(), encoding="utf-8")
    output = folder / f"{name}-output"
    output.mkdir()
    command = [sys.executable, "-m", "fastkto.bench.worker", system, str(file), str(output)]
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as messages:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=messages, text=True)
    return Worker(name, system, process, log)


def _step(worker: Worker, step: int) -> Step:
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its last words are in the answer
        worker.process.stdin.write("step\n")
        worker.process.stdin.flush()
    return _answer(worker, f"step {step}")


def _answer(worker: Worker, before: str) -> Step:
    assert worker.process.stdout is not None
    line = worker.process.stdout.readline()
    if not line:
        said = worker.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LINES:]
        ended = f"{worker.name} ended before {before}, {_end(worker.process)}:"
        kind, _, message = (said or [""])[-1].partition(": ")
        if kind in ("fastkto.errors.InputError", "fastkto.errors.MissingExtra"):
            raise ProcessFailed(f"{ended} {message}")
        raise ProcessFailed("\n".join([ended, *said]))
    found: Step = loads(line)
    return found


def _check_room(worker: Worker, step: Step, systems: int) -> None:
    """A system that freed its cache because others are on the GPU is not timed; alone, it is as it is."""
    if systems > 1 and step.get("retries"):
        fix = "Take fewer with --systems, or smaller steps."
        raise ProcessFailed(f"{worker.name}: no room on the GPU beside the {systems - 1} other systems. {fix}")


def _end(process: "subprocess.Popen[str]") -> str:
    try:
        code = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        return "without an end of its process"
    if code >= 0:
        return f"with exit code {code}"
    why = " (out of memory, if the system's log says so)" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{why}"


def _check_equal(cases: dict[str, tuple[str, Case]], steps: dict[str, list[Step]]) -> None:
    """Systems that take the same steps on one case must have."""
    for same, exact in SAME_STEP:
        names = [name for name, (system, _) in cases.items() if system in same]
        for first, other in pairwise(names):
            case = cases[first][1]
            if case != cases[other][1]:
                continue
            allowed = ALLOWED[case.bf16 or case.dtype != "float32"] | dict.fromkeys(exact, 0.0)
            for ours, theirs in zip(steps[first], steps[other], strict=True):
                for figure, most in allowed.items():
                    if not abs(ours[figure] - theirs[figure]) <= most * abs(theirs[figure]):
                        raise ProcessFailed(f"{figure} of {first} and {other} differ: {ours}, {theirs}")


def summary(steps: dict[str, list[Step]], clock: str = "wall") -> dict[str, dict[str, float]]:
    """Medians of each, and its ratio to the first, with the least and the most of its steps."""
    first = next(iter(steps))
    table = {}
    for name, taken in steps.items():
        ratios = [theirs[clock] / ours[clock] for ours, theirs in zip(steps[first], taken, strict=True)]
        table[name] = {
            "wall_seconds": statistics.median([step["wall"] for step in taken]),
            "cpu_seconds": statistics.median([step["cpu"] for step in taken]),
            "peak_gib": max(step["peak_gib"] for step in taken),
            "times_as_long": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return table
