"""What `fastkto plan` predicts against what is then measured: 2 sizes x full/LoRA x live/cached x 3 lengths.

    python benchmarks/plan.py [--output FILE] [--again FILE]

Each case is a process of its own that takes two steps on the CPU; the plan is made from the config before. The
measured peak is resident memory, so the prediction has what the process itself needs in it. `--again` predicts
anew what is compared with the measurements of an earlier result.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from models import MEDIUM, random_model
from peft import LoraConfig
from rows import DEMO_MODEL
from transformers import AutoConfig

from fastkto.bench.case import Case
from fastkto.bench.compare import measure
from fastkto.bench.machine import machine
from fastkto.config import KTOConfig
from fastkto.tools.plan import Model, peak_by_part, process_bytes, rows_of, total

LENGTHS = (512, 1024, 2048)
BATCH = 2
WHAT = ("size", "adapter", "cached", "length")
GIB = 2**30


def predicted(model: str, *, adapter: bool, cached: bool, length: int) -> dict[str, int]:
    config = KTOConfig("unused", use_cpu=True, bf16=False, precompute_ref_log_probs=cached)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32) if adapter else None
    known = Model(AutoConfig.from_pretrained(model), torch.float32, lora)
    return peak_by_part(known, config, rows_of(BATCH, length))


def measured(model: str, *, adapter: bool, cached: bool, length: int, threads: int) -> float:
    case = Case.of_full_length(model, BATCH, length, 2, use_peft=adapter, threads=threads)
    ((step,),) = measure({"": ("fastkto-cached" if cached else "fastkto", case)}).values()
    return step["peak_gib"]


def main() -> None:
    """Print every case, and the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", type=Path, help="an earlier result, whose measurements stand")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cases: list[dict[str, Any]] = []
    before = json.loads(options.again.read_text(encoding="utf-8")) if options.again else {"cases": []}
    known = {tuple(case[name] for name in WHAT): case["measured_gib"] for case in before["cases"]}
    process = process_bytes(torch.device("cpu"))  # before anything else is in this one
    with tempfile.TemporaryDirectory(prefix="fastkto-bench-") as folder:
        models = {"48M": random_model(Path(folder), **MEDIUM), "135M": str(DEMO_MODEL)}
        for size, adapter, cached, length in product(models, (False, True), (False, True), options.lengths):
            what = {"adapter": adapter, "cached": cached, "length": length}
            parts = predicted(models[size], **what) | {"the process itself": process}
            peak = known.get((size, *what.values())) or measured(models[size], **what, threads=options.threads)
            case = {"size": size, **what, "predicted_gib": total(parts) / GIB, "measured_gib": peak}
            case |= {"error": total(parts) / GIB / peak - 1, "parts": parts}
            cases.append(case)
            print(
                f"{size} {'LoRA' if adapter else 'full'} {'cached' if cached else 'live  '} {length:5} tokens: "
                f"{case['predicted_gib']:6.2f} GiB predicted, {peak:6.2f} measured, {case['error']:+.1%}",
                flush=True,
            )
    worst = max(cases, key=lambda case: abs(case["error"]))
    print(f"{len(cases)} cases, the worst {worst['error']:+.1%}")
    if options.output:
        about = machine("cpu", options.threads)
        measured_on = before.get("measured_on") or before if options.again else about
        about["measured_on"] = {name: measured_on[name] for name in ("date", "device", "commit", "versions")}
        result = {**about, "batch": BATCH, "worst": worst["error"], "cases": cases}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
