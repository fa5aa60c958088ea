"""One optimizer step of KTO, ours against TRL 1.16's on the same rows and pairs: time, peak memory, equal losses.

    python benchmarks/step.py [--model DIR_OR_ID] [--data FILE] [--batch 8] [--steps 4] [--systems fastkto trl]

Each system is a process of its own, so that its peak resident memory is its own; steps alternate, so that drift
cancels; the first step of each is dropped. Ratios of times are of CPU seconds on a CPU, of wall time on a GPU. The
reference is a second live model, gradient checkpointing is on, AdamW steps. `trl-compact` scores completion positions
only, as TRL does on CUDA; TRL as shipped scores all of them on a CPU. `--systems fastkto fastkto-cached sft trl-sft` is
the price of KTO over plain fine-tuning on the same completions.
"""

import json
import sys

from rows import arguments, case_of, settings

from fastkto.bench.compare import measure, summary
from fastkto.bench.machine import machine
from fastkto.bench.systems import SYSTEMS


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--systems", nargs="+", default=["fastkto", "trl", "trl-compact"], choices=tuple(SYSTEMS))
    options = parser.parse_args()
    case = case_of(options)
    cases = {system: (system, case) for system in options.systems}
    steps = measure(cases, progress=lambda line: print(line, file=sys.stderr))
    clock = "wall" if case.device == "cuda" else "cpu"
    table = summary(steps, clock)
    for system, figures in table.items():
        print(f"{system:15} " + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    if options.output:
        about = {**machine(case.device, options.threads), **settings(options), "clock": clock}
        result = {**about, "summary": table, "steps": steps}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
