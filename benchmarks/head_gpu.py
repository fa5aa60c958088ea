"""The LM head on a GPU: time, extra memory and error, against its peers and bare cuBLAS GEMMs.

    PYTHONPATH=kernels:. python benchmarks/head_gpu.py [--shapes 8b qwen8b ...] [--seconds 400] [--out FOLDER]

Needs torch, triton and a CUDA GPU; TRL, Liger and Cut Cross-Entropy are timed where they can be imported and named
where they cannot. Every shape is checked against float64 before anything is timed; a red check ends the run. Writes
`<device>_<date>.json` after each shape. Times are medians of interleaved runs with the L2 cache flushed by the others.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastkto_kernels as fk
import torch

from fastkto.bench.machine import machine

SHAPES = {
    "8b": (16384, 4096, 128256),
    "qwen8b": (8192, 4096, 151936),
    "qwen0.6b": (16384, 1024, 151936),
    "gemma2b": (4096, 2304, 256000),
    "smollm": (2048, 576, 49152),
}
CHECKED = 256
"""Positions compared with float64."""


def inputs(n: int, d: int, v: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Peaked logits like a trained model's: each hidden state leans towards its target's row; entropy 1 to 2 nats."""
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(v, d, device="cuda", dtype=torch.bfloat16, generator=generator) * d**-0.5
    targets = torch.randint(0, v, (n,), device="cuda", generator=generator)
    lean = 6 + 12 * torch.rand(n, 1, device="cuda", generator=generator)
    noise = torch.randn(n, d, device="cuda", generator=generator)
    hidden = (lean * weight[targets].float() + 1.5 * noise).bfloat16()
    return hidden, weight, targets


def exact_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """float64 log-probs of the same 16-bit inputs, in slices."""
    parts = []
    for start in range(0, hidden.shape[0], 64):
        rows = slice(start, start + 64)
        z = hidden[rows].double() @ weight.double().T
        parts.append(z.gather(1, targets[rows, None])[:, 0] - z.logsumexp(1))
    return torch.cat(parts)


def check(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, route: str | None) -> dict[str, float]:
    """Errors of log-probs and of both gradients against float64; raises where one is too large."""
    plan = None if route is None else fk.plan_for(fk.arch_of(hidden.device), hidden.dtype, hidden.shape[1], route)
    some = fk.Head(hidden[:CHECKED], weight, targets[:CHECKED], plan=plan)
    outputs, unit = fk.forward(some, unit_dx=True)
    whole, _ = fk.forward(fk.Head(hidden, weight, targets, plan=plan))
    exact = exact_logps(some.hidden, weight, some.targets)
    error = whole.logps[:CHECKED].double() - exact
    x = some.hidden.double().requires_grad_()
    w = weight.double().requires_grad_()
    (x @ w.T).log_softmax(1).gather(1, some.targets[:, None]).sum().backward()
    kept_outputs, kept = fk.block_forward(some)
    dx, dw = torch.empty_like(some.hidden), torch.empty_like(weight)
    fk.block_backward(some, kept_outputs, kept, torch.ones_like(outputs.lse), dx=dx, dw=dw, db=None, accumulate=False)
    again = fk.backward(some, outputs.lse, torch.ones_like(outputs.lse), hidden=True, weight=True, bias=False)

    def relative(found: torch.Tensor, reference: torch.Tensor) -> float:
        return ((found.double() - reference).norm() / reference.norm()).item()

    result = {
        "logp_mean_abs_error": error.abs().mean().item(),
        "logp_bias": error.mean().item(),
        "dx_frozen": relative(unit, x.grad),
        "dx_kept": relative(dx, x.grad),
        "dw_kept": relative(dw, w.grad),
        "dx_recomputed": relative(again.hidden, x.grad),
        "dw_recomputed": relative(again.weight, w.grad),
        "same_bits_in_any_batch": float(torch.equal(whole.logps[:CHECKED], outputs.logps)),
        "same_bits_kept": float(torch.equal(kept_outputs.logps, outputs.logps)),
    }
    gradients = [value for name, value in result.items() if name.startswith("d")]
    if not (result["logp_mean_abs_error"] < 1e-4 and max(gradients) < 1e-2):
        raise SystemExit(f"RED: {route or 'table'} {result}")
    return result


def ours(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, route: str | None, tag: str
) -> dict[str, Callable]:
    """No-grad stream, frozen W, trained W by blocks of rows (6 NDV), trained W by recompute (8 NDV)."""
    plan = None if route is None else fk.plan_for(fk.arch_of(hidden.device), hidden.dtype, hidden.shape[1], route)
    head, grad = fk.Head(hidden, weight, targets, plan=plan), torch.ones(hidden.shape[0], device="cuda")

    def blocks() -> None:
        positions = fk.kept_positions(head, 1 << 30)
        dx = torch.empty_like(hidden)
        one = positions >= hidden.shape[0]
        dw = torch.empty_like(weight) if one else torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, hidden.shape[0], positions):
            rows = slice(start, start + positions)
            block = fk.Head(hidden[rows], weight, targets[rows], plan=plan)
            outputs, kept = fk.block_forward(block)
            fk.block_backward(block, outputs, kept, grad[rows], dx=dx[rows], dw=dw, db=None, accumulate=not one)
            del kept
        dw.to(weight.dtype)

    def recompute() -> None:
        outputs, _ = fk.forward(head)
        fk.backward(head, outputs.lse, grad, hidden=True, weight=True, bias=False)

    return {
        f"{tag} no-grad": lambda: fk.forward(head),
        f"{tag} no-grad with statistics": lambda: fk.forward(head, stats=True),
        f"{tag} frozen": lambda: fk.forward(head, unit_dx=True),
        f"{tag} trained, blocks": blocks,
        f"{tag} trained, recompute": recompute,
    }


def gemms(hidden: torch.Tensor, weight: torch.Tensor) -> dict[str, Callable]:
    """One, two and three bare cuBLAS GEMMs of 2 NDV, 16-bit results, in slices of 4,096 positions."""
    unit = torch.randn(4096, weight.shape[0], device="cuda", dtype=weight.dtype)
    parts = hidden.split(4096)

    def run(count: int) -> None:
        for part in parts:
            part @ weight.T
            if count > 1:
                unit[: part.shape[0]] @ weight
            if count > 2:
                unit[: part.shape[0]].T @ part

    return {f"cuBLAS {count} GEMM": lambda count=count: run(count) for count in (1, 2, 3)}


def peers(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[dict[str, Callable], list[str]]:
    """What others offer for the same job, frozen and trained, and the names of those that are not here."""
    found: dict[str, Callable] = {}
    absent: list[str] = []

    def both(name: str, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        for kind in ("frozen", "trained"):

            def run(kind: str = kind) -> None:
                x = hidden.detach().requires_grad_()
                w = weight.detach().requires_grad_(kind == "trained")
                loss(x, w).backward()

            found[f"{name} {kind}"] = run

    if hidden.shape[0] * weight.shape[0] * 10 < 40e9:
        both(
            "materialised",
            lambda x, w: -(x @ w.T).float().log_softmax(1).gather(1, targets[:, None]).sum(),
        )
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        both("F.linear_cross_entropy", lambda x, w: torch.nn.functional.linear_cross_entropy(x, w, targets))
    else:
        absent.append("F.linear_cross_entropy")
    try:
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

        def trl(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            outputs = ("entropy", "mean_logits")  # what its KTO trainer asks for
            chunk = _CHUNKED_LOGPROB_CHUNK_SIZE
            return -_ChunkedLogProbFunction.apply(x, w, None, targets, 1.0, chunk, None, 1.0, outputs)[0].sum()

        both("TRL", trl)
    except (ImportError, RuntimeError) as error:
        absent.append(f"TRL ({error})")
    try:
        from cut_cross_entropy import linear_cross_entropy

        both("Cut Cross-Entropy", lambda x, w: linear_cross_entropy(x, w, targets, reduction="sum"))
    except (ImportError, RuntimeError) as error:
        absent.append(f"Cut Cross-Entropy ({error})")
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearKTOLoss

        rows = 16
        length = hidden.shape[0] // rows
        labels = torch.arange(rows, device="cuda") % 2 == 0
        loss = LigerFusedLinearKTOLoss(use_ref_model=True)

        def liger(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            x = x[: rows * length].view(rows, length, -1)
            y = targets[: rows * length].view(rows, length)
            kl = torch.zeros(1, device="cuda")
            return loss(x, w, y, None, labels, ref_input=x.detach(), ref_weight=weight, kl=kl)[0]

        both("Liger KTO (with its reference pass)", liger)
    except (ImportError, RuntimeError) as error:
        absent.append(f"Liger ({error})")
    return found, absent


def measure(cases: dict[str, Callable], seconds: float, repeats: int) -> dict[str, dict[str, Any]]:
    """Median time, spread and peak extra memory of each, interleaved; a case that fails is named with its error."""
    results: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    for name, case in cases.items():
        try:
            case()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            case()
            torch.cuda.synchronize()
            results[name] = {"peak_extra_MiB": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)}
            times[name] = []
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
    deadline = time.monotonic() + seconds
    for turn in range(repeats):
        if turn > 2 and time.monotonic() > deadline:
            break
        for name in times:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            cases[name]()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    for name, values in times.items():
        results[name] |= {"ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}
    return results


def one_shape(name: str, seconds: float, repeats: int) -> dict[str, Any]:
    """Check, then time, one of `SHAPES`."""
    n, d, v = SHAPES[name]
    hidden, weight, targets = inputs(n, d, v)
    wide = weight.float()  # as under autocast, which is KTOConfig's default: cast slab by slab
    checks = {route or "table": check(hidden, weight, targets, route) for route in (None, "fused", "fold")}
    checks["table, float32 weights"] = check(hidden, wide, targets, None)
    torch.cuda.empty_cache()
    others, absent = peers(hidden, weight, targets)
    cases = gemms(hidden, weight)
    for route in ("fused", "fold"):
        cases |= ours(hidden, weight, targets, route, route)
    cases |= ours(hidden, wide, targets, None, "float32 weights,")
    results = measure(cases | others, seconds, repeats)
    plan = fk.plan_for(fk.arch_of(hidden.device), hidden.dtype, d)
    for case in results.values():
        if "ms" in case:
            case["of_one_GEMM"] = round(case["ms"] / results["cuBLAS 1 GEMM"]["ms"], 3)
    return {"N": n, "D": d, "V": v, "route": plan.route, "checks": checks, "results": results, "absent": absent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=300, help="of timing, for all shapes together")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/head_gpu.py needs a CUDA GPU; none is here.")
    device = torch.cuda.get_device_name().replace(" ", "-")
    path = arguments.out / f"{device}_{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**machine("cuda"), "shapes": {}}
    for name in arguments.shapes:
        report["shapes"][name] = shape = one_shape(name, arguments.seconds / len(arguments.shapes), arguments.repeats)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\n{name} N={shape['N']} D={shape['D']} V={shape['V']}; the table says {shape['route']}")
        for route, check_ in shape["checks"].items():
            print(f"  {route}: " + ", ".join(f"{k} {x:.1e}" for k, x in check_.items()))
        for case, x in shape["results"].items():
            print(
                f"  {case:42} "
                + (x.get("failed") or f"{x['ms']:9.2f} ms {x['of_one_GEMM']:6.2f} {x['peak_extra_MiB']:9.1f} MiB")
            )
        print("  absent:", "; ".join(shape["absent"]) or "none", flush=True)
        torch.cuda.empty_cache()
    print(path)


if __name__ == "__main__":
    main()
