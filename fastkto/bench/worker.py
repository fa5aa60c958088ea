"""One system in a process of its own: waits for a line, takes a step, prints a line.

python -m fastkto.bench.worker SYSTEM CASE_AS_JSON_FILE OUTPUT_FOLDER
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from fastkto.bench.case import Case
from fastkto.bench.systems import build

FIGURES = ("loss", "grad_norm", "kl", "num_tokens")


class OnRequest(TrainerCallback):
    """Steps when asked to; an empty line ends the process. A step begins with the making of its batch."""

    def __init__(self, answers: Any, device: str) -> None:
        self.answers, self.device = answers, device

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Say that everything before the first step is done."""
        print("{}", file=self.answers, flush=True)

    def watch(self, trainer: Trainer) -> Trainer:
        """Have it wait for the word, then start the clocks, before it fetches a batch."""
        fetch = trainer.get_batch_samples

        def when_asked(*arguments: Any, **options: Any) -> Any:
            if not sys.stdin.readline().strip():
                raise SystemExit
            self._wait()
            self.start, self.cpu = time.perf_counter(), time.process_time()
            return fetch(*arguments, **options)

        trainer.get_batch_samples = when_asked  # type: ignore[method-assign]
        return trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop them."""
        self._wait()
        self.spent = {"wall": time.perf_counter() - self.start, "cpu": time.process_time() - self.cpu}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Answer with the times, the peak memory up to here, and the step's figures."""
        if logs and "loss" in logs:
            figures = {name: logs.get(name) for name in FIGURES}
            memory = {"peak_gib": peak_gib(self.device)}
            if self.device == "cuda":
                memory["retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
            print(json.dumps({**self.spent, **figures, **memory}), file=self.answers, flush=True)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def peak_gib(device: str) -> float:
    """Of the allocator on a GPU, of resident memory on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the peak of the process that started this one
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    """Train; what the libraries print goes to stderr."""
    system, case, folder = sys.argv[1], Case.from_json(Path(sys.argv[2]).read_text(encoding="utf-8")), sys.argv[3]
    answers, sys.stdout = sys.stdout, sys.stderr
    asked = OnRequest(answers, case.device)
    asked.watch(build(system, case, asked, folder)).train()


if __name__ == "__main__":
    main()
