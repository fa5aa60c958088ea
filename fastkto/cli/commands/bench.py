"""`fastkto bench`: what a training step costs on this machine with this model, beside TRL's and plain fine-tuning."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastkto.bench.case import DTYPES, SYSTEMS, Case
from fastkto.cli.options.strict import StrictParser
from fastkto.errors import MissingExtra
from fastkto.installation import add_command
from fastkto.ranges import COUNT

DESCRIPTION = """Time and peak memory of a training step on rows of max_length tokens, half of each its prompt. Systems
take their steps in turn, each in a process of its own, on the same rows; where two should take the same step, their
losses and gradient norms are compared first. sft is plain fine-tuning on the same completions."""


def run(argv: Sequence[str]) -> int:
    """Measure and print a table."""
    options = parser().parse_all(argv)

    from fastkto.bench.compare import measure, summary
    from fastkto.bench.machine import here, machine
    from fastkto.disk import writing
    from fastkto.training.loading import model_source

    case = Case.of_full_length(
        model_source(options.model, "model"),
        options.batch,
        options.max_length,
        options.steps + 1,
        dtype=options.dtype,
        use_peft=options.use_peft,
        **here(),
        settings={} if (most := options.max_tokens_per_forward) is None else {"max_tokens_per_forward": most},
    )
    systems = options.systems or ["fastkto", "sft", *(["trl"] if importlib.util.find_spec("trl") else [])]
    if any(system.startswith("trl") for system in systems) and importlib.util.find_spec("trl") is None:
        raise MissingExtra("trl", "bench")
    if "trl" not in systems and not options.systems:
        print(f"trl is not installed, so it is left out. Run: {add_command('bench', 'trl')}", file=sys.stderr)
    cases = {system: (system, case) for system in systems}
    steps = measure(cases, progress=lambda line: print(line, file=sys.stderr))
    figures = summary(steps)
    print(table(figures, case))
    if options.output is not None:
        settings = {name: getattr(options, name) for name in ("batch", "max_length", "dtype", "use_peft")}
        about = {**machine(case.device), "model": Path(case.model).name, **settings, "clock": "wall"}
        result = {**about, "summary": figures, "steps": steps}
        with writing("output", str(options.output), "the figures"):
            options.output.expanduser().write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def table(figures: dict[str, dict[str, float]], case: Case) -> str:
    """A line a system: medians of the counted steps, ratios to the first with their spread."""
    first = next(iter(figures))
    head = f"{'':16}{'s a step':>9}{'tokens/s':>10}{'peak GiB':>10}{f'time / {first}':>18}{'memory':>9}"
    lines = [head]
    for name, found in figures.items():
        tokens = case.batch * case.max_length / found["wall_seconds"]
        ratio = f"{found['times_as_long']:.2f} ({found['least']:.2f}-{found['most']:.2f})"
        memory = found["peak_gib"] / figures[first]["peak_gib"]
        lines.append(
            f"{name:16}{found['wall_seconds']:9.2f}{tokens:10.0f}{found['peak_gib']:10.2f}{ratio:>18}{memory:9.2f}"
        )
    return "\n".join(lines)


def parser() -> StrictParser:
    """The options."""
    found = StrictParser(command="bench", description=DESCRIPTION)
    found.add_argument("--model", required=True, help="folder or Hub id of the model")
    found.add_argument("--max_length", type=_positive, default=1024, help="tokens of each row")
    found.add_argument("--batch", type=_positive, default=8, help="rows of a micro-batch")
    found.add_argument("--steps", type=_positive, default=3, help="counted steps, after one that is not")
    found.add_argument("--systems", nargs="+", choices=SYSTEMS, help="what to run; the ratios are to the first")
    found.add_argument("--use_peft", action="store_true", help="train a LoRA adapter instead of all weights")
    found.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    found.add_argument("--max_tokens_per_forward", type=_positive, help="of fastkto: split a micro-batch")
    found.add_argument(
        "--output", type=lambda text: Path(text).expanduser(), help="also write the figures there, as JSON"
    )
    return found


def _positive(text: str) -> int:
    if not (text.isdecimal() and COUNT.holds(int(text))):
        raise argparse.ArgumentTypeError(f"{text!r} is not {COUNT}")
    return int(text)
