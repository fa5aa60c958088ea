"""The head on this CPU against the bare GEMM, materialised logits and TRL's head: ratios, from one interleaved run.

    python benchmarks/head_cpu.py [--shapes 1024,576,49152 ...] [--rounds 5] [--output benchmarks/results/head_cpu.json]

Answers are checked against float64 before anything is timed. Each round runs every contestant once; a ratio is of two
times of the same round, and the median over rounds is printed beside that of the two best times. float32.
On a machine that is not idle: `OMP_NUM_THREADS=1 ... --clock cpu`, which counts the processor's time, not waiting.
"""

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastkto.bench.machine import machine
from fastkto.head import fused_linear_kto, token_logprobs

SHAPES = ("1024,576,49152", "2048,2048,128256", "512,4096,151936")
MATERIALISED_BYTES = 1 << 30  # of logits, above which the materialised contestants sit out
TRL_OUTPUTS = ("entropy", "mean_logits")  # what TRL 1.16's KTO asks its head for


def inputs(shape: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, d, v = (int(size) for size in shape.split(","))
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(n, d), torch.randn(v, d).mul_(2 * d**-0.5), torch.randint(0, v, (n,))
    return hidden, weight, targets


def exact_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float64 log-probs, a slice of the positions and of the vocabulary at a time."""
    out = []
    for rows in torch.arange(hidden.shape[0]).split(256):
        x = hidden[rows].double()
        lse = torch.stack([(x @ w.double().T).logsumexp(1) for w in weight.split(16384)]).logsumexp(0)
        out.append((x * weight[targets[rows]].double()).sum(1) - lse)
    return torch.cat(out)


def error(logps: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    difference = logps.detach().double() - exact
    return {"mean_absolute_error": difference.abs().mean().item(), "bias": difference.mean().item()}


def backward(function: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Values, and gradients of the leaves; the upstream gradient differs by position, and of a loss it is 1."""
    out = function()
    upstream = torch.linspace(1.0, -1.0, out.numel())
    return (out.detach(), *torch.autograd.grad((out * upstream).sum(), leaves))


def contestants(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> dict[str, Callable[[], object]]:
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    x, w = hidden.clone().requires_grad_(), weight.requires_grad_()
    fits = 4 * hidden.shape[0] * weight.shape[0] <= MATERIALISED_BYTES
    warm = torch.empty(hidden.shape[0], weight.shape[0]).fill_(0.0)
    rows = list(range(0, hidden.shape[0] + 1, 64))
    labels, zeros = torch.arange(len(rows) - 1) % 2 == 0, torch.zeros(len(rows) - 1)

    def native(w: torch.Tensor) -> torch.Tensor:
        return token_logprobs(x, w, targets, backend="native")

    def trl(w: torch.Tensor) -> torch.Tensor:
        size = _CHUNKED_LOGPROB_CHUNK_SIZE
        return _ChunkedLogProbFunction.apply(x, w, None, targets, 1.0, size, None, 1.0, TRL_OUTPUTS)[0]

    def materialised(w: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.cross_entropy(x @ w.T, targets, reduction="none")

    def blocks(w: torch.Tensor) -> torch.Tensor:
        reference = zeros - 64 * 11.0
        out = fused_linear_kto(x, w, targets, rows, labels, reference, loss_type="apo_zero_unpaired", backend="native")
        return out.loss[None]

    def without_graph(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return function(w)

    def product(out: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            return torch.mm(hidden, weight.T, out=out)

    frozen = w.detach()
    every: dict[str, Callable[[], object]] = {
        "gemm": product,
        "gemm into a warm out": lambda: product(warm),
        "forward": lambda: without_graph(native),
        "frozen": lambda: backward(lambda: native(frozen), x),
        "trained": lambda: backward(lambda: native(w), x, w),
        "trained by blocks": lambda: backward(lambda: blocks(w), x, w),
        "trl forward": lambda: without_graph(trl),
        "trl frozen": lambda: backward(lambda: trl(frozen), x),
        "trl trained": lambda: backward(lambda: trl(w), x, w),
    }
    if fits:
        every["materialised forward"] = lambda: without_graph(materialised)
        every["materialised frozen"] = lambda: backward(lambda: materialised(frozen), x)
        every["materialised trained"] = lambda: backward(lambda: materialised(w), x, w)
    return every


RATIOS = (
    ("forward", "gemm", 1),
    ("forward", "gemm into a warm out", 1),
    ("frozen", "gemm", 2),
    ("frozen", "gemm into a warm out", 2),
    ("trained", "gemm", 4),
    ("trained", "gemm into a warm out", 4),
    ("trained by blocks", "gemm", 3),
    ("trained by blocks", "gemm into a warm out", 3),
    ("forward", "materialised forward", 1),
    ("frozen", "materialised frozen", 1),
    ("trained", "materialised trained", 1),
    ("trained by blocks", "materialised trained", 1),
    ("forward", "trl forward", 1),
    ("frozen", "trl frozen", 1),
    ("trained", "trl trained", 1),
    ("trained by blocks", "trl trained", 1),
)


def check(every: dict[str, Callable[[], object]], exact: torch.Tensor) -> dict[str, dict[str, float]]:
    """Errors of the log-probs, and the gradients' largest distance from TRL's, relative to their largest value."""
    report = {name: error(every[name](), exact) for name in every if name.endswith("forward")}
    for mode in ("frozen", "trained"):
        ours, theirs = every[mode](), every[f"trl {mode}"]()
        for name, a, b in zip(("dX", "dW"), ours[1:], theirs[1:], strict=False):
            distance = ((a - b).abs().max() / b.abs().max()).item()
            report[f"{mode} {name}"] = {"distance": distance}
            assert distance < 1e-4, f"{mode}: {name} is off by {distance}"
    assert report["forward"]["mean_absolute_error"] < 1e-5, report["forward"]
    assert abs(report["forward"]["bias"]) < 1e-6, report["forward"]
    return report


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def peak_scratch(every: dict[str, Callable[[], object]], hidden: torch.Tensor, weight: torch.Tensor) -> dict[str, int]:
    """Bytes resident at the peak of a call, beyond what was before it and what it returns."""
    dx, dw = 4 * hidden.numel(), 4 * weight.numel()
    returned = {"forward": 0, "frozen": dx, "trained": dx + dw, "trained by blocks": dx + dw}
    peaks = {}
    for name, size in returned.items():
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for itself would hide a peak
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        every[name]()
        peaks[name] = resident("VmHWM") - before - size
    return peaks


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def run(shape: str, rounds: int, clock: Callable[[], float]) -> dict[str, object]:
    hidden, weight, targets = inputs(shape)
    every = contestants(hidden, weight, targets)
    errors = check(every, exact_logps(hidden, weight.detach(), targets))
    scratch = peak_scratch(every, hidden, weight)
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, function in every.items():
            start = clock()
            kept = function()
            seconds[name].append(clock() - start)
            del kept
    ratios = {}
    for ours, base, times in RATIOS:
        if base in seconds:
            each = [a / (times * b) for a, b in zip(seconds[ours], seconds[base], strict=True)]
            best = min(seconds[ours]) / (times * min(seconds[base]))
            ratios[f"{ours} / {times} {base}"] = {"median": statistics.median(each), "best": best}
    fastest = {name: min(values) for name, values in seconds.items()}
    return {"ratios": ratios, "seconds": fastest, "errors": errors, "peak_scratch_bytes": scratch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="N,D,V")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {**machine("cpu"), "clock": options.clock, "rounds": options.rounds, "shapes": {}}
    for shape in options.shapes:
        result = report["shapes"][shape] = run(shape, options.rounds, CLOCKS[options.clock])
        print(f"\nN,D,V = {shape}")
        for name, values in result["errors"].items():
            print(f"  {name:42s}" + "  ".join(f"{key} {value:+.1e}" for key, value in values.items()))
        for name, size in result["peak_scratch_bytes"].items():
            print(f"  {name:42s}scratch {size / 2**20:.1f} MiB")
        for name, values in result["ratios"].items():
            print(f"  {name:42s}median {values['median']:.3f}  best {values['best']:.3f}")
        print(
            "  seconds, best: " + ", ".join(f"{name} {value:.3f}" for name, value in result["seconds"].items()),
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
