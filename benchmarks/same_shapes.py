"""Rows of the committed lengths stand in for the real ones: the same ratio to TRL, measured on both in one run.

    python benchmarks/same_shapes.py --data FILE [--batch 4] [--max_length 512] [--output FILE]

Four processes take their steps in turn: fastkto and TRL, each on the real rows and on seeded words of their lengths.
Ratios are of the times of all counted steps together: the steps differ in shape.
"""

import json
import sys

from rows import arguments, case_of, settings

from fastkto.bench.compare import measure
from fastkto.bench.machine import machine


def main() -> None:
    options = arguments(__doc__, batch=4, max_length=512).parse_args()
    if options.data is None:
        sys.exit("--data FILE: the rows that lengths.json was made of")
    real = case_of(options)
    options.data, file = None, options.data
    made_up = case_of(options)
    cases = {
        f"{system}, {name}": (system, case)
        for name, case in (("real", real), ("made up", made_up))
        for system in ("fastkto", "trl")
    }
    steps = measure(cases, progress=lambda line: print(line, file=sys.stderr))
    clock = "wall" if real.device == "cuda" else "cpu"
    totals = {name: sum(step[clock] for step in taken) for name, taken in steps.items()}
    ratios = {name: totals[f"trl, {name}"] / totals[f"fastkto, {name}"] for name in ("real", "made up")}
    tokens = {name: [step["num_tokens"] for step in taken] for name, taken in steps.items()}
    assert len({tuple(counts) for counts in tokens.values()}) == 1, f"the steps are of other shapes: {tokens}"
    print(f"TRL / fastkto: {ratios['real']:.3f} on real rows, {ratios['made up']:.3f} on made-up ones, ", end="")
    print(f"{ratios['made up'] / ratios['real'] - 1:+.1%}")
    if options.output:
        about = {**machine(real.device, options.threads), **settings(options), "data": file.name}
        result = {**about, "clock": clock, "ratios": ratios, "steps": steps}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
