"""The longest rows that each system trains on in so much memory: what was measured, and what `fastkto plan` estimates.

    python benchmarks/context.py [--memory 2GiB] [--batch 2] [--model DIR_OR_ID] [--systems fastkto trl] [--output FILE]

Lengths double until a step needs more, then what lies between is halved twice: what is found is at most a fifth too
short. Each step is taken in a fresh process, and its peak is that of the allocator on a GPU, of resident memory on a
CPU. Unset, the model is a random one of 48M weights.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import MEDIUM, random_model
from transformers import AutoConfig

from fastkto.bench.case import Case
from fastkto.bench.compare import measure
from fastkto.bench.machine import here, machine
from fastkto.bench.systems import SYSTEMS
from fastkto.cli.commands.plan import size
from fastkto.config import KTOConfig
from fastkto.errors import ProcessFailed
from fastkto.tools.plan import Model, Search, process_bytes
from fastkto.training.faults.out_of_memory import out_of_memory

FIRST = 256
HALVINGS = 2
GIB = 2**30


def longest(fits: Callable[[int], bool], window: int) -> int:
    """The longest length known to fit, within the model's window; 0 where the first does not."""
    low, high = 0, min(FIRST, window)
    while low < window and fits(high):
        low, high = high, min(2 * high, window)
    for _ in range(HALVINGS if 0 < low < window else 0):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def peak(system: str, model: str, batch: int, length: int, threads: int) -> float | None:
    """GiB of the second step; None where it is out of memory."""
    case = Case.of_full_length(model, batch, length, 2, threads=threads, **here())
    try:
        ((step,),) = measure({system: (system, case)}).values()
    except ProcessFailed as error:
        if not out_of_memory(error):
            raise
        return None
    return float(step["peak_gib"])


def planned(model: str, batch: int, memory: int) -> int | None:
    config = KTOConfig("unused", max_length=FIRST, per_device_train_batch_size=batch)
    room = memory if config.device.type == "cuda" else memory - process_bytes(config.device)
    return Search(Model(AutoConfig.from_pretrained(model), torch.float32), config).longest(batch, FIRST, room)


def main() -> None:
    """Print every peak, then the longest of each system."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=size, default=size("2GiB"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--model")
    parser.add_argument("--systems", nargs="+", default=["fastkto", "trl"], choices=tuple(SYSTEMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    peaks: dict[str, dict[int, float | None]] = {system: {} for system in options.systems}
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="fastkto-bench-") as folder:
        model = options.model or random_model(Path(folder), **MEDIUM)
        window = AutoConfig.from_pretrained(model).max_position_embeddings
        estimate = planned(model, options.batch, options.memory)
        for system in options.systems:

            def fits(length: int, system: str = system) -> bool:
                needs = peaks[system][length] = peak(system, model, options.batch, length, options.threads)
                said = "out of memory" if needs is None else f"{needs:.2f} GiB"
                print(f"{system:15} {length:7} tokens: {said}", flush=True)
                return needs is not None and needs * GIB <= options.memory

            found[system] = longest(fits, window)
    within = f"in {options.memory / GIB:.1f} GiB, {options.batch} rows per batch"
    for system, length in found.items():
        print(f"{system:15} {length:7} tokens per row {within}")
    print(f"fastkto plan estimates {estimate} tokens per row for fastkto {within}")
    if options.output:
        what: dict[str, Any] = {"model": Path(options.model).name if options.model else "random, 48M weights"}
        what |= {"memory_gib": options.memory / GIB, "batch": options.batch, "planned": estimate}
        result = {**machine(here()["device"], options.threads), **what, "longest": found, "peak_gib": peaks}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
