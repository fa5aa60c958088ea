"""How near one step of KTO is to its arithmetic: the share of the GEMM + attention floor, and a profile by operation.

    python benchmarks/floor.py [--batch 8] [--steps 4] [--output FILE]

The floor is the step's multiply-adds, as `counts.py` counts them, at the best rate of `torch.mm` into a warm `out=` at
the step's own shapes, measured in the same process between the steps. The last step runs under the profiler and is
not timed. Also the counted price of KTO over plain fine-tuning of the same batches.
"""

import json
import statistics
import tempfile
import time
from typing import Any

import torch
from counts import PASSES, flops, linear_shapes
from rows import ON_CPU, arguments, case_of, settings
from transformers import TrainerCallback

from fastkto.bench.machine import machine
from fastkto.bench.systems import build

ROUNDS = 5


def best_rate(config: Any, tokens: int) -> dict[str, float]:
    """FLOP a second of `torch.mm` into a warm `out=`, by shape, the best of a few."""
    rates = {}
    for inner, outer in sorted(set(linear_shapes(config))):
        a, b, out = torch.randn(tokens, inner), torch.randn(inner, outer), torch.zeros(tokens, outer)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
        rates[f"{tokens}x{inner}x{outer}"] = 2 * tokens * inner * outer / min(seconds)
    return rates


class Watch(TrainerCallback):
    """Times the steps after the first, measures the rate of products between them, and profiles the last."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds, self.rates = steps, [], []
        self.batches: list[dict[str, Any]] = []
        self.profile: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, or the profiler for the last step."""
        if state.global_step == self.steps - 1:
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.__enter__()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.start)
        if self.profile is not None:
            self.profile.__exit__(None, None, None)
        self.rates.append(best_rate(model.config, self.batches[-1]["num_tokens"]))


def main() -> None:
    """Print the floor and the profile."""
    options = arguments(__doc__, steps=5).parse_args()
    watch = Watch(options.steps)
    folder = tempfile.TemporaryDirectory(prefix="fastkto-bench-")
    trainer: Any = build("fastkto", case_of(options, ON_CPU), watch, folder.name)
    compute_loss = trainer.compute_loss

    def noted(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        watch.batches.append(inputs)
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = noted
    trainer.train()

    config = trainer.model.config
    rate = max(max(rates.values()) for rates in watch.rates)
    steps = []
    for seconds, batch in list(zip(watch.seconds, watch.batches, strict=True))[1:-1]:
        counted = flops("fastkto", config, batch)
        floor = sum(counted.values()) / rate
        steps.append({"seconds": seconds, "floor_seconds": floor, "share": floor / seconds, "flop": counted})
    averages = sorted(watch.profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    profile = {event.key: [event.self_cpu_time_total / 1e6, event.count] for event in averages[:20]}
    total = sum(event.self_cpu_time_total for event in averages) / 1e6
    share = statistics.median(step["share"] for step in steps)
    print(f"best rate of torch.mm {rate / 1e9:.0f} GFLOP/s; share of the floor {share:.0%}, by step:")
    for step in steps:
        print("  " + "  ".join(f"{name} {step[name]:.2f}" for name in ("seconds", "floor_seconds", "share")))
    totals = {name: sum(sum(flops(name, config, batch).values()) for batch in watch.batches) for name in PASSES}
    prices = {name: total / totals["sft"] for name, total in totals.items()}
    print("counted price over plain fine-tuning: " + ", ".join(f"{name} {x:.3f}" for name, x in prices.items()))
    print(f"\nprofiled step, {total:.1f} s by operation:")
    for name, (seconds, count) in profile.items():
        print(f"  {name:50} {seconds:7.2f} s {seconds / total:6.1%} {count:6} calls")
    if options.output:
        result = {
            **machine("cpu", options.threads),
            **settings(options),
            "rate": rate,
            "rates": watch.rates[-1],
            "share": share,
            "counted_prices": prices,
            "steps": steps,
        }
        options.output.write_text(json.dumps({**result, "profile": profile}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
