"""Two ways to run a micro-batch larger than one forward may be, with one z0: time and peak memory of each.

    python benchmarks/separability.py [--batch 16] [--max_tokens 2048] [--output FILE]

`joint graph`: every forward keeps its graph (layer inputs, under checkpointing) until z0 is known, then one backward.
`z0 first`: a pass without a graph over all [x | y'] for z0, then forward and backward split by split; the prompts are
computed once more. Each way is a process of its own; losses and gradient norms must agree.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from rows import ON_CPU, arguments, case_of, settings
from transformers import TrainerCallback

from fastkto.batch import PackingCollator
from fastkto.batch.targets_and_kl import streams
from fastkto.bench.machine import machine
from fastkto.bench.systems import LoadedCase
from fastkto.bench.worker import peak_gib
from fastkto.head import token_stats
from fastkto.head.fused_kto import kto_of_token_stats
from fastkto.losses.kto import LossSettings
from fastkto.step.micro_step import ReferenceLogps, kto_step, row_logps
from fastkto.trunk.run import ModelRun, run_batch
from fastkto.trunk.scorer import Scored, install_scorer

SETTINGS = LossSettings(beta=0.001, desirable_weight=1.0, undesirable_weight=1.0, loss_type="kto")
REFERENCE = -300.0  # nats of every row: a stand-in, so that only the policy is timed


def joint_graph(run: ModelRun, rows: list[dict[str, Any]], options: argparse.Namespace) -> torch.Tensor:
    """What the trainer does."""
    batch = PackingCollator(options.max_length, max_tokens=options.max_tokens)(rows)
    reference = torch.full((len(rows),), REFERENCE)
    out, _ = kto_step(run, batch, ReferenceLogps(reference, reference), SETTINGS, num_rows=None, reduce=None)
    out.loss.backward()
    return out.loss.detach()


def z0_first(run: ModelRun, rows: list[dict[str, Any]], options: argparse.Namespace) -> torch.Tensor:
    """Rows of [x | y'] are scored as targets of their own, then each split of the real targets goes both ways."""
    starts, _, kl = streams(rows, options.max_length, kl=True)
    pairs = [row | {"completion_ids": ids[start:]} for row, start, ids in zip(rows, starts, kl, strict=True)]
    collator = PackingCollator(options.max_length, kl=False, max_tokens=options.max_tokens)
    kl_logps, _ = row_logps(run, collator(pairs))
    reference = torch.full((len(rows),), REFERENCE)
    batch = collator(rows)
    total, first = torch.zeros(()), 0
    for sequence in batch["sequences"]:
        last = first + len(sequence["cu_seqlens"]) - 1
        part = batch | {"sequences": [sequence], "cu_seqlens": sequence["cu_seqlens"]}

        def loss(scored: Scored, rows_of_part: slice = slice(first, last)) -> torch.Tensor:
            stats = token_stats(scored.hidden, scored.head.module.weight, scored.targets)
            out = kto_of_token_stats(
                stats,
                scored.cu_seqlens,
                batch["label"][rows_of_part],
                reference[rows_of_part],
                kl_logps=kl_logps,
                ref_kl_logps=reference,
                num_rows=len(rows),
                reduce=None,
                **SETTINGS._asdict(),
            )
            return out.loss

        (value,) = run_batch(run, part, loss)
        value.backward()
        total, first = total + value.detach(), last
    return total


WAYS = {"joint graph": joint_graph, "z0 first": z0_first}


def work(options: argparse.Namespace) -> None:
    """One way, in this process."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="fastkto-bench-") as folder:
        loaded = LoadedCase(case_of(options, ON_CPU), TrainerCallback(), folder)
        rows = loaded.tokenised().select(range(options.batch)).to_list()
    model = loaded.model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    install_scorer(model)
    run, seconds = ModelRun(model), []
    before = peak_gib("cpu")
    for _ in range(options.steps):
        model.zero_grad()
        start = time.perf_counter()
        loss = WAYS[options.worker](run, rows, options)
        seconds.append(time.perf_counter() - start)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    peak = peak_gib("cpu")
    figures = {"seconds": min(seconds), "peak_gib": peak, "gib_of_steps": peak - before}
    print(json.dumps(figures | {"loss": loss.item(), "grad_norm": norm.item()}))


def main() -> None:
    """Print both ways."""
    parser = arguments(__doc__, batch=16, steps=2)
    parser.add_argument("--max_tokens", type=int, default=2048)
    parser.add_argument("--worker", choices=tuple(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    ways = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", way]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        ways[way] = json.loads(printed.splitlines()[-1])
        print(f"{way:12} " + "  ".join(f"{name} {value:.4g}" for name, value in ways[way].items()), flush=True)
    joint, first = ways.values()
    for name in ("loss", "grad_norm"):
        assert abs(joint[name] - first[name]) <= 1e-4 * abs(joint[name]), name
    if options.output:
        about = {**machine("cpu", options.threads), **settings(options), "max_tokens": options.max_tokens}
        options.output.write_text(json.dumps({**about, "ways": ways}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
