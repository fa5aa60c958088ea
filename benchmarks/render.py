"""Figures of README and docs from result files: each block between two marks is written by the function of its name.

python benchmarks/render.py [--check]
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLOCKS = {"cpu": "CPU time", "wall": "time"}
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)


def newest(kind: str) -> dict[str, Any]:
    """The latest result of a kind: `<kind>_<device>_<date>.json`."""
    files = sorted(RESULTS.glob(f"{kind}_*.json"), key=lambda path: path.stem.rpartition("_")[2])
    return json.loads(files[-1].read_text(encoding="utf-8"))


def clock_of(result: dict[str, Any]) -> str:
    """What a result's ratios are of; the first ones do not say, and are of CPU seconds."""
    return str(result.get("clock", "cpu"))


def demo() -> str:
    """The demo's before and after, and what it took."""
    lines = [
        "| `make demo`: 80 held-out prompts, greedy | before | after |",
        "|---|---:|---:|",
    ]
    result, imbalanced = newest("demo"), newest("demo-imbalanced")
    before, after = result["before"], result["after"]
    rows = {
        "answers that the rule calls desirable": lambda x: f"{x['share']:.0%}",
        "95% Wilson interval": lambda x: "{:.0%} to {:.0%}".format(*x["interval"]),
        "reward margin on held-out rows (β · nats)": lambda x: f"{x['reward_margin']:.2f}",
        "untrained model's log-prob of the answers (nats per token)": lambda x: f"{x['untrained_logp']:.2f}",
    }
    lines += [f"| {name} | {show(before)} | {show(after)} |" for name, show in rows.items()]
    lines.append(
        "| desirable with 90% of the desirable rows dropped (`make demo-imbalanced`) "
        f"| {imbalanced['before']['share']:.0%} | {imbalanced['after']['share']:.0%} |"
    )
    assert before["prompts"] == 80, "the heading says 80"
    seconds = result["seconds"]["total"]
    lines += [
        "",
        f"{seconds['wall']:.0f} s of wall time and {seconds['cpu']:.0f} CPU seconds on {result['device']}, "
        f"{result['date'][:10]}, both evaluations included; installing and the one-off model conversion are not. "
        f"`make test` took {result['make_test_seconds'] / 60:.0f} minutes there after installing. The weights are a "
        "dequantised Q4_1 GGUF, not the original ones.",
    ]
    return "\n".join(lines) + "\n"


def step() -> str:
    """One optimizer step against TRL and against plain fine-tuning."""
    against_trl, price, floor, same = (newest(kind) for kind in ("step", "price", "floor", "same-shapes"))
    larger, compact = newest("step-batch-16"), newest("step-batch-16-compact")
    ours, steps = against_trl["summary"]["fastkto"], len(against_trl["steps"]["trl"])
    lines = [
        f"| a step of {against_trl['batch']} rows of up to {against_trl['max_length']} tokens "
        f"| {CLOCKS[clock_of(against_trl)]} | peak memory |",
        "|---|---:|---:|",
    ]
    names = {"trl": "TRL 1.16", "trl-compact": "TRL 1.16, scoring completions only as it does on CUDA"}
    for system, name in names.items():
        theirs = against_trl["summary"][system]
        memory = theirs["peak_gib"] / ours["peak_gib"]
        lines.append(f"| {name} | {theirs['times_as_long']:.1f}× | {memory:.1f}× ({theirs['peak_gib']:.1f} GiB) |")
    lines.append(f"| **fastkto** | **1** | **1 ({ours['peak_gib']:.1f} GiB)** |")
    memory = price["summary"]["fastkto"]["peak_gib"]
    names = {"fastkto-cached": "fastkto, reference cached", "sft": "plain fine-tuning (SFT) on the same packed rows"}
    for system, name in names.items():
        time, peak = price["summary"][system]["times_as_long"], price["summary"][system]["peak_gib"]
        lines.append(f"| {name} | {time:.2f}× | {peak / memory:.2f}× ({peak:.1f} GiB) |")
    lines += [
        "",
        "SmolLM2-135M, float32, a second live model as the reference, gradient checkpointing, AdamW included, on "
        f"{against_trl['device']}, {against_trl['date'][:10]}: medians of {steps} steps of one interleaved run whose "
        "losses and gradient norms are equal, each system in a process of its own. "
        f"With {larger['batch']} rows TRL takes {_beside(larger, 'trl')}, and {_beside(compact, 'trl-compact')} where "
        "it scores completions only. Rows of the committed lengths give TRL's ratio "
        f"{same['ratios']['made up'] / same['ratios']['real'] - 1:+.0%} from that of the real rows. "
        f"{floor['share']:.0%} of fastkto's step is what its matrix products and attention take at the best rate that "
        "`torch.mm` reaches there.",
    ]
    return "\n".join(lines) + "\n"


def _beside(result: dict[str, Any], system: str) -> str:
    theirs, ours = result["summary"][system], result["summary"]["fastkto"]
    memory = theirs["peak_gib"] / ours["peak_gib"]
    return f"{theirs['times_as_long']:.1f}× the {CLOCKS[clock_of(result)]} and {memory:.1f}× the memory"


def _longest(context: dict[str, Any], system: str) -> str:
    if context["longest"][system]:
        return str(context["longest"][system])
    length, peak = min((int(length), peak) for length, peak in context["peak_gib"][system].items())
    return f"fewer than {length}, which need {peak:.2f} GiB"


def room() -> str:
    """The longest rows in so much memory, and how far the plan's predictions are off."""
    context, plan = newest("context"), newest("plan")
    names = {"trl": "TRL 1.16", "fastkto": "**fastkto**"}
    lines = [
        f"| the longest rows that train in {context['memory_gib']:.0f} GiB, {context['batch']} a batch | tokens |",
        "|---|---:|",
        *(f"| {name} | {_longest(context, system)} |" for system, name in names.items()),
        f"| what `fastkto plan` estimated for fastkto | {context['planned']} |",
        "",
    ]
    errors = [case["error"] for case in plan["cases"]]
    lines.append(
        f"Model: {context['model']}, float32, all weights trained, a live reference; on {context['device']}, "
        f"{context['date'][:10]}: resident memory with that of the process itself in it; lengths tried are up to a "
        "quarter apart. "
        f"The peak memory that `fastkto plan` predicted was {min(errors):+.1%} to {max(errors):+.1%} from the measured "
        f"one in {len(errors)} cases that it was not fitted to: models of 48M and 135M weights, full and LoRA, a live "
        f"and a cached reference, rows of 512 to 2048 tokens; there, {plan['date'][:10]}."
    )
    return "\n".join(lines) + "\n"


def head() -> str:
    """The native head in GEMMs of its own shape, and TRL's head in ours."""
    result = newest("head")
    lines = [
        "| LM head: N × D × V | forward / a GEMM | W frozen / 2 | W trained / 4 | TRL 1.16's / ours, W trained |",
        "|---|---:|---:|---:|---:|",
    ]
    for shape, found in result["shapes"].items():
        ratios = {name: ratio["median"] for name, ratio in found["ratios"].items()}
        warm = [ratios[f"{mode} gemm into a warm out"] for mode in ("forward / 1", "frozen / 2", "trained / 4")]
        cells = " | ".join(f"{x:.2f}" for x in [*warm, 1 / ratios["trained / 1 trl trained"]])
        lines.append(f"| {shape.replace(',', ' × ')} | {cells} |")
    worst = max(found["errors"]["forward"]["mean_absolute_error"] for found in result["shapes"].values())
    lines += [
        "",
        "Times, float32; a GEMM is `torch.mm` of that shape into memory that is there already. On "
        f"{result['device']}, {result['date'][:10]}: medians of at least {result['rounds']} interleaved rounds. "
        f"Error of a log-prob against float64 of the same inputs: {worst:.0e} nats on average at most.",
    ]
    return "\n".join(lines) + "\n"


def hosts() -> str:
    """Inside each host's own trainer, against its own path."""
    results = json.loads((ROOT / "tests" / "compat" / "results.json").read_text(encoding="utf-8"))
    lines = [
        "| inside | loss, grad norm, metrics: largest relative difference | CPU time | peak memory |",
        "|---|---:|---:|---:|",
    ]
    runs = {host: found["smollm2"] for host, found in results.items() if "smollm2" in found}
    for host, model in runs.items():
        worst = max(model["largest_relative_difference"].values())
        ratios = f"{model['cpu_seconds']['ratio']:.2f}× | {model['peak_GiB']['ratio']:.2f}×"
        lines.append(f"| {host} | {worst:.0e} | {ratios} |")
    dates = sorted(model["date"] for model in runs.values())
    lines += [
        "",
        "fastkto inside each host against the host's own path: 6 steps of SmolLM2-135M on short rows, float32, one CPU "
        f"thread, {dates[-1]}. On rows this short the weights and AdamW's state are most of the memory.",
    ]
    return "\n".join(lines) + "\n"


def claim() -> str:
    """The picture's figures in one sentence."""
    curves, against, cached = newest("losses"), newest("step"), newest("price")
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(*(curves["steps"][x] for x in ("trl", "fastkto")), strict=True)]
    trl, ours = against["summary"]["trl"], against["summary"]["fastkto"]
    share = cached["summary"]["fastkto-cached"]["times_as_long"] / cached["summary"]["fastkto"]["times_as_long"]
    return (
        f"SmolLM2-135M on a CPU, float32. Left: {len(gaps)} steps of 8 rows of the demo, losses at most "
        f"{max(gaps):.0e} apart, {_where(curves)}. Right: a step of {against['batch']} rows of up to "
        f"{against['max_length']} tokens takes TRL 1.16 {trl['times_as_long']:.1f}× the time and "
        f"{trl['peak_gib'] / ours['peak_gib']:.1f}× the memory, {_where(against)}; with the reference cached fastkto "
        f"needs {share:.2f}× of its own time. [How it was measured](docs/cost.md).\n"
    )


def status() -> str:
    """What has run where."""
    lines = ["| what | where | when |", "|---|---|---|"]
    for path in sorted(RESULTS.glob("matrix_*.json")):
        matrix = json.loads(path.read_text(encoding="utf-8"))
        rows = matrix["rows"].values()
        failed = sum(row["failed"] for row in rows)
        torches = sorted({row["versions"]["torch"].partition("+")[0] for row in rows})
        pythons = sorted({row["versions"]["python"].rpartition(".")[0] for row in rows})
        lines.append(
            f"| the test suite in {len(rows)} settings: {failed} failures | {matrix['processor']['model']}, "
            f"{matrix['device']}; torch {torches[0]} to {torches[-1]}; Python {' and '.join(pythons)} | "
            f"{max(row['date'] for row in rows)[:10]} |"
        )
    families = newest("families")
    counts = families["counts"]
    trained = sum(counts.get(way, 0) for way in ("packed", "padded", "row by row"))
    lines.append(
        f"| {trained} model families against stock transformers, tiny: {counts['packed']} packed, {counts['padded']} "
        f"padded, {counts['row by row']} row by row | transformers {families['transformers']} | {families['date']} |"
    )
    hosts = json.loads((ROOT / "tests" / "compat" / "results.json").read_text(encoding="utf-8"))
    for date in sorted({found["date"] for found in hosts.values()}, reverse=True):
        of_day = [name for name, found in hosts.items() if found["date"] == date and not found["failed"]]
        lines.append(f"| inside {', '.join(of_day)} | a CPU | {date} |")
    gpus = sorted(RESULTS.glob("gpu-*.json"))
    gpu = f"| Triton kernels | {', '.join(path.stem for path in gpus)} | see there |"
    none = "| Triton kernels: compiled for every architecture, interpreted on a CPU | **no GPU yet** | |"
    return "\n".join([*lines, gpu if gpus else none]) + "\n"


def _where(result: dict[str, Any]) -> str:
    return f"{result['device']}, {result['date'][:10]}"


def rates() -> str:
    """Learning rates of an adapter and of all weights."""
    result = newest("lora-rates")
    lines = [
        "| trained | learning rate | margin | held-out margin | held-out accuracy | held-out loss | held-out KL |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, by_rate in result["rates"].items():
        for rate, found in by_rate.items():
            figures = [f"{found[name]:.3f}" for name in ("margin", "held_out_margin")]
            figures.append(f"{found['held_out_accuracy']:.0%}")
            figures += [f"{found[name]:.3f}" for name in ("held_out_loss", "held_out_kl")]
            lines.append(f"| {kind} | {float(rate):.0e} | {' | '.join(figures)} |")
    lines += [
        "",
        f"{result['model']}, {result['steps']} steps of 8 of the demo's rows, β = 0.1, float32; KL in nats; "
        f"margin: the last {result['steps'] // 3} steps. "
        f"On {result['device']}, {result['date'][:10]}: `python benchmarks/lora_rates.py`.",
    ]
    return "\n".join(lines) + "\n"


SECTIONS = {
    "demo": demo,
    "step": step,
    "room": room,
    "head": head,
    "hosts": hosts,
    "rates": rates,
    "claim": claim,
    "status": status,
}
PAGES = (ROOT / "README.md", ROOT / "docs" / "choosing.md", ROOT / "docs" / "cost.md")


def render(text: str) -> str:
    """A page with every block rendered."""
    return BLOCK.sub(lambda block: block[1] + SECTIONS[block[2]]() + block[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    check, late = parser.parse_args().check, False
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = render(old)
        late |= new != old
        if not check:
            page.write_text(new, encoding="utf-8")
    return int(check and late)


if __name__ == "__main__":
    sys.exit(main())
