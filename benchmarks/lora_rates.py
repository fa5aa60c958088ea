"""What a learning rate does to an adapter, and to all weights: margins on rows trained on and held out, by rate.

    python benchmarks/lora_rates.py [--steps 24] [--output FILE]

SmolLM2-135M on the demo's rows, an eighth of the prompts held out; the adapter is that of `fastkto init`.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rows import DEMO_MODEL

import fastkto
from fastkto.bench.machine import machine
from fastkto.cli.options.arguments import ModelArguments
from fastkto.cli.options.peft_options import peft_config
from fastkto.rows.selection import Selection, select
from fastkto.tools.init.settings import OF_LORA

RATES = {"adapter": (1e-6, 1e-5, 1e-4, 5e-4, 2e-3), "all weights": (1e-6, 5e-6)}
FEEDBACK = Path(__file__).parents[1] / "examples" / "demo" / "train.jsonl"


def train(kind: str, rate: float, steps: int, out: Path) -> dict[str, float]:
    """The last figures of one run."""
    split = select(fastkto.normalise(fastkto.read_rows(FEEDBACK)), Selection(test_split_size=0.125), seed=0)
    config = fastkto.KTOConfig(
        output_dir=str(out),
        learning_rate=rate,
        max_steps=steps,
        warmup_steps=3,
        per_device_train_batch_size=8,
        desirable_weight="auto",
        logging_steps=steps // 3,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=steps,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    adapter = peft_config(ModelArguments(model_name_or_path=str(DEMO_MODEL), use_peft=kind == "adapter", **OF_LORA))
    trainer = fastkto.KTOTrainer(
        str(DEMO_MODEL), args=config, train_dataset=split.train, eval_dataset=split.test, peft_config=adapter
    )
    trainer.train()
    trained = [line for line in trainer.state.log_history if "loss" in line][-1]
    held_out = [line for line in trainer.state.log_history if "eval_loss" in line][-1]
    return {
        "loss": trained["loss"],
        "margin": trained["rewards/margins"],
        "held_out_loss": held_out["eval_loss"],
        "held_out_margin": held_out["eval_rewards/margins"],
        "held_out_accuracy": held_out["eval_rewards/accuracies"],
        "held_out_kl": held_out["eval_kl"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = machine("cpu") | {"model": "SmolLM2-135M", "rows": FEEDBACK.name, "steps": options.steps}
    result["rates"] = {}
    for kind, rates in RATES.items():
        result["rates"][kind] = {}
        for rate in rates:
            with tempfile.TemporaryDirectory() as folder:
                found = train(kind, rate, options.steps, Path(folder))
            result["rates"][kind][str(rate)] = found
            print(f"{kind:12} {rate:8.0e}  " + "  ".join(f"{name} {x:.3f}" for name, x in found.items()), flush=True)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
